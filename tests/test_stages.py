"""From one stage of training to the next: what is carried over, and what goes on by other rules."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny import masks_of, theirs, updater

import jaxprune
from jaxprune import trees

HALF = {"sparsity": 0.5, "ramp": (0, 2), "every": 1}
MORE = {"sparsity": 0.75, "ramp": (0, 4), "every": 2}


def momentum() -> Any:
    return theirs(optax.sgd(0.1, momentum=0.9))


def adam() -> Any:
    return theirs(optax.adam(0.01))


def trained(tx: Any, steps: int = 3) -> tuple[Any, Any]:
    params, step = tiny.params(), updater(tx)
    state = tx.init(params)
    for n in range(steps):
        params, state = step(tiny.normal(n + 1), state, params)
    return params, state


STAGES: Any = {
    "hard": lambda inner, **values: jaxprune.gradual_magnitude(inner, **(HALF | values)),
    "straight_through": lambda inner, **values: jaxprune.straight_through(inner, **HALF | values),
    "attention": lambda inner, **values: jaxprune.magnitude_attention(inner, **HALF | values),
    "rigl": lambda inner: jaxprune.rigl(inner, sparsity=0.5, every=2, stop=8),
    "random": lambda inner: jaxprune.static(inner, sparsity=0.5),
}
both = pytest.mark.parametrize("before", STAGES), pytest.mark.parametrize("after", STAGES)


@both[0]
@both[1]
def test_masks_weights_and_slots_go_on_where_the_clock_begins_anew(before: str, after: str) -> None:
    params, old = trained(STAGES[before](momentum()))
    tx = STAGES[after](momentum())
    state = jaxprune.next_stage(tx, params, old)
    tiny.same_bits(tiny.saved(state.prune_mask), tiny.saved(old.prune_mask))
    tiny.same_bits(state.prune_inner, old.prune_inner)
    assert int(state.prune_count) == int(state.prune_skipped) == 0
    assert state.prune_spec == tx.init(params).prune_spec
    weights, copies = trees.by_path(old.prune_dense), trees.by_path(state.prune_dense)
    for path, copy in copies.items():  # from the old copy, or from the params where it had none
        np.testing.assert_array_equal(copy, weights.get(path, trees.by_path(params)[path]))
    assert bool(state.prune_loaded) == bool(copies)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))
    assert tiny.layout(state) == tiny.layout(tx.init(params))


@both[0]
@both[1]
def test_training_goes_on_from_the_masks(before: str, after: str) -> None:
    """The first update revives nothing, and every later one is on the masks of the new rules."""
    params, old = trained(STAGES[before](momentum()))
    tx = STAGES[after](momentum())
    state, step = jaxprune.next_stage(tx, params, old), updater(tx)
    masks = masks_of(old)
    for n in range(1, 5):
        params, state = step(tiny.normal(10 + n), state, params)
        if after in ("random", "hard") or (n == 1 and after == "rigl"):
            assert all((masks_of(state)[path] <= masks[path]).all() for path in masks)
        tiny.on_support(params, state, whole=False)
        jaxprune.verify(params, state)
    assert int(state.prune_count) == 4


def test_dense_weights_that_were_carried_are_what_moves() -> None:
    """Of pruned weights too, which the params do not show any more."""
    params, old = trained(STAGES["straight_through"](theirs(optax.sgd(0.1))))
    tx = STAGES["straight_through"](theirs(optax.sgd(0.1)), every=99, ramp=(0, 99))
    state, push = jaxprune.next_stage(tx, params, old), tiny.normal(9)
    _, later = updater(tx)(push, state, params)
    for path, w in trees.by_path(old.prune_dense).items():
        living = masks_of(old)[path].any(0) | np.zeros_like(masks_of(old)[path])
        moved = np.asarray(w) - np.float32(0.1) * np.asarray(trees.by_path(push)[path])
        found = np.asarray(trees.by_path(later.prune_dense)[path])
        np.testing.assert_allclose(found[living], moved[living], rtol=1e-6)


def test_going_on_by_the_same_rules_is_going_on() -> None:
    """Where nothing depends on the clock."""
    tx = jaxprune.static(momentum(), sparsity=0.5)
    params, old = trained(tx)
    state, step = jaxprune.next_stage(tx, params, old), updater(tx)
    a = step(tiny.normal(9), tiny.saved(old), tiny.saved(params))
    b = step(tiny.normal(9), state, params)
    tiny.same_bits(a[0], b[0])
    tiny.same_bits(a[1].prune_inner, b[1].prune_inner)


def test_another_optimizer_begins_with_fresh_slots() -> None:
    params, old = trained(STAGES["hard"](momentum()))
    tx = STAGES["straight_through"](adam())
    state = jaxprune.next_stage(tx, params, old)
    tiny.same_bits(state.prune_inner, tx.init(params).prune_inner)


def test_slots_around_a_method_that_stands_last_go_on_too() -> None:
    def chained(method: Any) -> Any:
        return optax.chain(adam(), method)

    first = chained(jaxprune.static(None, sparsity=0.5))
    params, old = trained(first)
    tx = chained(jaxprune.gradual_magnitude(None, **MORE))
    state: Any = jaxprune.next_stage(tx, params, old)
    tiny.same_bits(state[0], old[0])
    assert int(optax.tree.get(state, "count")) == 3
    other = optax.chain(momentum(), jaxprune.gradual_magnitude(None, **MORE))
    fresh = jaxprune.next_stage(other, params, old)
    begun: Any = other.init(params)
    tiny.same_bits(fresh[0], begun[0])
    tiny.same_bits(fresh[1].prune_mask, old[1].prune_mask)


def test_both_states_may_be_donated() -> None:
    """Nothing of the new state lies in the memory of the old one, or of the params."""
    for before in ("hard", "straight_through"):
        params, old = trained(STAGES[before](momentum()))
        keep = tiny.saved((params, old))
        tx = STAGES["straight_through"](momentum())
        state = jaxprune.next_stage(tx, params, old)
        places = [
            {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)}
            for tree in (state, (params, old))
        ]
        assert len(places[0]) == len(jax.tree.leaves(state))
        assert not places[0] & places[1]
        donating = jax.jit(tx.update, donate_argnums=(1,))
        donating(tiny.normal(9), state, params)
        tiny.same_bits((params, old), keep)


def test_it_finds_the_method_in_any_nesting() -> None:
    first = optax.chain(optax.clip(1.0), jaxprune.static(adam(), sparsity=0.5))
    params, old = trained(first)
    tx = theirs(optax.MultiSteps(tiny.ours(STAGES["rigl"](adam())), 2).gradient_transformation())
    state = jaxprune.next_stage(tx, params, old)
    inner = optax.tree.get(state, "prune_inner")
    tiny.same_bits(jaxprune.get_masks(state), jaxprune.get_masks(old))
    tiny.same_bits(inner, optax.tree.get(old, "prune_inner"))
    assert int(optax.tree.get(state, "prune_count")) == 0
    params, state = updater(tx)(tiny.normal(9), state, params)
    tiny.on_support(params, state, whole=False)


def test_a_later_stage_prunes_further() -> None:
    params, state = trained(STAGES["hard"](momentum()))
    tx = jaxprune.gradual_magnitude(momentum(), **MORE)
    state, step, counts = jaxprune.next_stage(tx, params, state), updater(tx), []
    for n in range(4):
        params, state = step(tiny.normal(20 + n), state, params)
        counts.append(sum(tiny.kept(state).values()))
    assert counts == [36, 25, 25, 18]  # as many as kept already; 7/8 of the way; the end
    assert float(jaxprune.sparsity_of(state)) == 0.75


def test_a_ramp_goes_on_from_masks_that_are_its_start() -> None:
    """Without them it begins at 0, and weights come back that a view lets come back."""
    params, old = trained(STAGES["hard"](momentum()))
    largest = {}
    for start in (None, jaxprune.get_masks(old)):
        tx = jaxprune.straight_through(momentum(), **MORE | {"every": 1}, start=start)
        seen, state, step = params, jaxprune.next_stage(tx, params, old), updater(tx)
        counts = []
        for n in range(4):
            seen, state = step(tiny.normal(20 + n), state, seen)
            counts.append(sum(tiny.kept(state).values()))
        largest[start is None] = counts
    assert largest == {False: [26, 20, 18, 18], True: [41, 25, 19, 18]}  # from 36, and from 72


def test_what_cannot_go_on_is_refused() -> None:
    params, old = trained(STAGES["hard"](momentum(), where="body"))
    with pytest.raises(ValueError, match=r"`tx` must prune only what the old .*'head/kernel'"):
        jaxprune.next_stage(STAGES["rigl"](momentum()), params, old)
    with pytest.raises(ValueError, match="`old_state` must hold a jaxprune method, got 'none'"):
        jaxprune.next_stage(STAGES["rigl"](momentum()), params, momentum().init(params))
    with pytest.raises(ValueError, match="`tx` must hold a jaxprune method, got 'none'"):
        jaxprune.next_stage(momentum(), params, old)
    parts = {"a": tiny.ours(STAGES["hard"](None)), "b": tiny.ours(STAGES["random"](None))}
    two = theirs(optax.multi_transform(parts, {"body": "a", "head": "b"}))
    with pytest.raises(ValueError, match="`tx` must hold one jaxprune method, got 2"):
        jaxprune.next_stage(two, params, old)
    with pytest.raises(ValueError, match="`old_state` must hold one jaxprune method, got 2"):
        jaxprune.next_stage(STAGES["hard"](momentum()), params, two.init(params))


def test_masks_that_the_first_update_would_draw_are_refused() -> None:
    """They would take the place of those that are to be carried over."""
    params, old = trained(STAGES["hard"](momentum()))
    tx = STAGES["hard"](momentum(), start=lambda s: s.mask)
    with pytest.raises(ValueError, match="`tx` must have no function as `start`"):
        jaxprune.next_stage(tx, params, old)


# --------------------------------------------------------------------- a state of other rules


def test_an_update_refuses_a_state_of_other_rules() -> None:
    """While it is traced, and it names the way."""
    params = tiny.params()
    tx = jaxprune.gradual_magnitude(None, sparsity=0.98, ramp=(0, 4))
    cases = (
        (jaxprune.gradual_magnitude(None, sparsity=0.9, ramp=(0, 4)), "sparsity=0.98 .* has 0.9"),
        (jaxprune.gradual_magnitude(None, sparsity=0.98, ramp=(0, 9)), r"ramp=\[0, 4\] .*\[0, 9\]"),
        (jaxprune.straight_through(None, sparsity=0.98, ramp=(0, 4)), "method='gradual_magnitude'"),
        (jaxprune.static(None, sparsity=0.98), "method='gradual_magnitude' where .* has 'static'"),
    )
    for other, came in cases:
        state = other.init(params)
        for update in (tx.update, jax.jit(tx.update)):
            with pytest.raises(ValueError, match=f"`state` must .* same rules, got {came}"):
                update(params, state, params)
            with pytest.raises(ValueError, match=r"`next_stage\(tx, params, old_state\)` goes on"):
                update(params, state, params)


def test_a_state_of_the_same_rules_is_taken_whoever_made_it() -> None:
    """Also a state that another construction made, and values that are traced match any."""
    start = {"body": {"kernel": np.arange(32).reshape(4, 8) % 4 > 0}}
    for values in (HALF, HALF | {"start": start}, HALF | {"overrides": {"head": 0.25}}):
        made, tx = (jaxprune.gradual_magnitude(None, **values) for _ in range(2))
        updater(tx)(tiny.params(), made.init(tiny.params()), tiny.params())

    def begin(sparsity: Any, seed: Any) -> Any:
        tx = jaxprune.gradual_magnitude(None, sparsity=sparsity, ramp=(0, 2), every=1, seed=seed)
        return tx.init(tiny.params())

    states = jax.vmap(begin)(jnp.array([0.5, 0.75]), jnp.arange(2))
    params = jax.tree.map(lambda p: jnp.stack([p, p]), tiny.params())

    def step(sparsity: Any, state: Any, params: Any) -> Any:
        tx = jaxprune.gradual_magnitude(None, sparsity=sparsity, ramp=(0, 2), every=1)
        return tx.update(tiny.zeros_like(params), state, params)[1]

    both = jax.jit(jax.vmap(step))
    for _ in range(2):
        states = both(jnp.array([0.5, 0.75]), states, params)
    assert [sum(tiny.kept(tiny.part(states, i)).values()) for i in (0, 1)] == [36, 18]


@pytest.mark.parametrize(
    ("values", "others"),
    [
        ({"sparsity": optax.linear_schedule(0.0, 0.9, 1)}, optax.linear_schedule(0.0, 0.5, 1)),
        ({"sparsity": 0.5, "ramp": (0, 2), "where": lambda path, _: "body" in path}, "head"),
    ],
)
def test_functions_are_told_apart_by_what_they_hold(values: Any, others: Any) -> None:
    """Two schedules, or two functions of one place, have the same name."""
    name = [*values][-1]
    if isinstance(others, str):
        values, others = [
            {"sparsity": 0.5, "ramp": (0, 2), "where": lambda path, _, word=word: word in path}
            for word in ("body", others)
        ]
    else:
        others = {name: others}
    first, same, second = [
        jaxprune.straight_through(momentum(), every=1, **given)
        for given in (values, values, others)
    ]
    params, state = trained(first, 1)
    same.update(tiny.normal(5), state, params)
    with pytest.raises(ValueError, match=rf"{name}='.*where the state has '"):
        second.update(tiny.normal(5), state, params)


def test_a_list_of_one_pattern_is_that_pattern() -> None:
    params, state = trained(STAGES["hard"](momentum(), where=["body"]))
    STAGES["hard"](momentum(), where="body").update(tiny.normal(5), state, params)


def test_a_method_that_cannot_let_weights_grow_is_refused_behind_a_sparser_one() -> None:
    params, state = trained(jaxprune.gradual_magnitude(momentum(), sparsity=0.75, ramp=(0, 1)))
    tx = jaxprune.gradual_magnitude(momentum(), sparsity=0.5, ramp=(0, 1))
    with pytest.raises(ValueError, match=r"`tx` must keep no more than the 18 weights .* got 36"):
        jaxprune.next_stage(tx, params, state)
    jaxprune.next_stage(jaxprune.straight_through(momentum(), **HALF), params, state)


def test_params_of_other_shapes_have_no_next_stage() -> None:
    params, state = trained(STAGES["hard"](momentum()))
    params["head"]["kernel"] = jnp.ones((3, 5))
    with pytest.raises(ValueError, match=r"`params` must be those .* shape \(8, 5\) at 'head/ke"):
        jaxprune.next_stage(STAGES["hard"](momentum()), params, state)
