"""Filter attention (PAAM): the invariants of its phases, its scores, and what is refused."""

import itertools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import networks_of_images
import numpy as np
import optax
import pytest
import tiny
from test_channels_traced import TARGETS, inner
from test_shrink import IMAGES, STEM, UP, apply, traced

import jaxprune
from jaxprune import trees
from jaxprune.methods import filter_attention as module
from jaxprune.state import states_of
from jaxprune.types import Signals

pytestmark = [
    pytest.mark.usefixtures("standard_promotion"),
    pytest.mark.filterwarnings("ignore:levels of an attention network"),
]

BEGIN, LOOK, TRAIN = 2, 3, 4


def method(net: Any, optimizer: Any = None, residual: str = "tied", **values: Any) -> Any:
    given = {"sparsity": 0.5, "begin": BEGIN, "attention_steps": LOOK, "scope": "global"}
    given |= {"learner": optax.adam(0.05)} | values
    choice = net.channels(round_to=1, residual=residual)
    optimizer = inner() if optimizer is None else optimizer
    return jaxprune.filter_attention(optimizer, channels=choice, **given)


ENDS = [BEGIN + LOOK, BEGIN + 2 * LOOK + TRAIN]
TURNS = {"weight_steps": TRAIN, "stop": BEGIN + 2 * (LOOK + TRAIN)}


def stepper(tx: Any, stats: Any) -> Any:
    """A compiled step; its gradient may hold a NaN."""

    @jax.jit
    def step(params: Any, state: Any, bad: Any = False) -> Any:
        grads = jax.grad(lambda p: jnp.mean((apply(p, stats, IMAGES) - TARGETS) ** 2))(params)
        grads = jax.tree.map(lambda g: g + jnp.where(bad, jnp.nan, 0), grads)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def run(tx: Any, steps: int, params: Any, stats: Any, step: Any = None, poison: int = -1) -> Any:
    """Params and states of all ages."""
    step, state = step or stepper(tx, stats), tx.init(params)
    trail = [tiny.saved((params, state))]
    for n in range(steps):
        params, state = step(params, state, n == poison)
        trail.append(tiny.saved((params, state)))
    return trail


def looks(step: int) -> bool:
    """Whether the forward pass of an age is that of an attention phase."""
    return step >= BEGIN and step < TURNS["stop"] and (step - BEGIN) % (LOOK + TRAIN) < LOOK


def test_phases_leave_alone_what_is_not_theirs() -> None:
    """Attention steps the weights, their optimizer and its counters; weight steps the scores."""
    net, params, stats = traced()
    counting = tiny.theirs(optax.adamw(optax.linear_schedule(0.02, 0.0, 30), weight_decay=0.1))
    trail = run(method(net, counting, **TURNS), TURNS["stop"] + 3, params, stats)
    first = states_of(trail[0][1])[0]
    for n, ((_, old), (params, new)) in enumerate(itertools.pairwise(trail)):
        old, new = states_of(old)[0], states_of(new)[0]
        weights = (old.prune_dense, old.prune_inner), (new.prune_dense, new.prune_inner)
        scores = (old.prune_learned, old.prune_learner), (new.prune_learned, new.prune_learner)
        held, moved = (weights, scores) if looks(n) else (scores, weights)
        if n + 1 == ENDS[1]:  # what grows again begins with new slots
            held = old.prune_dense, new.prune_dense
        tiny.same_bits(*held)
        assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, moved), strict=True)), n
        assert bool(jaxprune.sees_dense(new)) == looks(n + 1)
        jaxprune.verify(params, new)
        active = trees.by_path(jaxprune.active_params(params, new))
        support, dense = (trees.by_path(jaxprune.support_of(new)), trees.by_path(new.prune_dense))
        for path, kept in support.items():
            np.testing.assert_array_equal(active[path], np.where(kept, dense[path], 0))
            if looks(n + 1):  # all filters are there
                assert (np.asarray(trees.by_path(params)[path]) != 0).all()
    for n in range(1, len(trail)):
        before, after = (tiny.masks_of(trail[k][1]) for k in (n - 1, n))
        if n in ENDS:
            assert sum(m.sum() for m in after.values()) == 10
        else:
            tiny.same_bits(before, after)
    assert all(m.all() for m in tiny.masks_of(first).values())


def test_scores_begin_at_one_bit_for_bit_and_have_a_gradient() -> None:
    net, params, stats = traced()
    for scores in ("attention", "free"):
        tx = method(net, begin=0, scores=scores)
        trail = run(tx, 2, params, stats)
        tiny.same_bits(jaxprune.view_params(params, trail[0][1]), params)
        first, second = (states_of(state)[0].prune_learned for _, state in trail[:2])
        moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), first, second)
        if scores == "attention":
            for network in moved[UP].values():
                assert network["v"] > 0 and network["u"] > 0
                assert network["query"] == network["key"] == 0  # v was 0
        else:
            assert moved[UP] > 0 and moved[STEM] > 0


def test_filters_that_are_left_out_stand_still_and_are_cut() -> None:
    net, params, stats = traced()
    trail = run(method(net), BEGIN + LOOK + 5, params, stats)
    chosen, last = (states_of(trail[n][1])[0] for n in (BEGIN + LOOK, -1))
    params = trail[-1][0]
    support = trees.by_path(jaxprune.support_of(last))
    for path, x in trees.by_path(chosen.prune_dense).items():
        off = ~np.broadcast_to(support[path], x.shape)
        same = np.asarray(x) == np.asarray(trees.by_path(last.prune_dense)[path])
        assert same[off].all() and not same[~off].all()
        assert not tiny.bits(trees.by_path(params)[path])[off].any()
    masks = jaxprune.get_masks(last)
    small = jaxprune.shrink(net, params, masks, also=stats)
    tiny.close(small.fn(small.params, small.also, IMAGES), apply(params, stats, IMAGES))
    assert jax.tree.structure(params) == jax.tree.structure(trail[0][0])
    assert small.params["up"]["kernel"].shape == (3, 3, masks[STEM].sum(), masks[UP].sum())


@pytest.mark.parametrize("scope", ["global", "layer", "cumulative"])
def test_as_many_stay_as_the_scope_says(scope: Any) -> None:
    net, params, stats = traced()
    tx = method(net, scope=scope, scores="free", sparsity=0.6, penalty="mean", strength=3.0)
    trail = run(tx, BEGIN + LOOK, params, stats)
    masks = tiny.masks_of(trail[-1][1])
    counts = {site: int(m.sum()) for site, m in masks.items()}
    values = all_scores(tx, trail[-1][1])
    if scope == "global":
        assert sum(counts.values()) == 8  # round(.4 * 20)
    if scope == "layer":
        assert counts == {UP: 5, STEM: 3}
    if scope == "cumulative":
        each = np.sort(np.concatenate([*values.values()]))[::-1]
        assert sum(counts.values()) == np.searchsorted(np.cumsum(each), 0.4 * each.sum()) + 1
    for site, mask in masks.items():
        if mask.any() and not mask.all():
            assert values[site][mask].min() >= values[site][~mask].max()


def all_scores(tx: Any, state: Any) -> dict[str, np.ndarray]:
    """The scores of a state, as the method's own change of masks computes them."""
    (state,) = states_of(state)
    parts = state.prune_spec.parts
    (change,) = parts.mask_updates
    dense = trees.by_path(state.prune_dense)
    signals = Signals(state.prune_count, dense, state.prune_mask, learned=state.prune_learned)
    return {site: np.asarray(x) for site, x in change.score(signals).items()}


def test_a_stream_has_the_highest_score_of_those_that_write_to_it() -> None:
    net, params, stats = traced()
    tx = method(net, begin=0)
    (_, state), *_ = run(tx, 0, params, stats)
    (state,) = states_of(state)
    learned = state.prune_learned
    assert {*learned[STEM]} == {"stem/kernel[3]", "down/kernel[3]"}
    learned[STEM]["stem/kernel[3]"]["u"] = jnp.float32(-1.0)
    tiny.close(all_scores(tx, state)[STEM], np.ones(8))
    learned[STEM]["down/kernel[3]"]["u"] = jnp.float32(-2.0)
    tiny.close(all_scores(tx, state)[STEM], np.full(8, np.exp(-1.0)))
    inside = method(net, residual="internal").init(params)
    assert [*states_of(inside)[0].prune_learned] == [UP]


def test_a_layer_whose_filters_are_of_two_groups_has_a_network_for_each() -> None:
    case = networks_of_images.padded_shortcut()
    net = jaxprune.trace(case.fn, case.params, *case.args, also=case.also)
    given = {"sparsity": 0.5, "begin": 0, "learner": optax.sgd(1.0), "scope": "layer"}
    tx = jaxprune.filter_attention(inner(), channels=net.channels(round_to=1), **given)
    shapes = jax.eval_shape(tx.init, case.params)
    (state,) = states_of(shapes)
    twice = [path for group in net.groups for path, _ in group.makers]
    assert len(twice) > len({*twice})
    assert {*state.prune_learned} == {group.name for group in net.groups}


def test_the_gradient_of_the_scores_is_that_of_the_loss() -> None:
    """By the penalty, and by hand: gates are scaled where the features are."""
    net, params, stats = traced()
    tx = method(net, begin=0, scores="free", strength=0.0, learner=optax.sgd(1.0))
    z = {UP: jnp.linspace(-1, 1, 12), STEM: jnp.linspace(-1, 0.5, 8)}

    def loss(params: Any) -> Any:
        return jnp.mean((apply(params, stats, IMAGES) - TARGETS) ** 2)

    def scaled(z: Any) -> Any:
        s, p = {name: module.activated(x) for name, x in z.items()}, params
        up, down, stem = (
            {k: x * s[group] for k, x in p[name].items()}
            for name, group in (("up_norm", UP), ("down_norm", STEM), ("stem_norm", STEM))
        )
        return {**p, "up_norm": up, "down_norm": down, "stem_norm": stem}

    wanted = jax.grad(lambda z: loss(scaled(z)))(z)
    state = tx.init(params)
    state = state._replace(prune_learned=z)
    _, new = jax.jit(tx.update)(jax.grad(loss)(scaled(z)), state, params)
    found = {name: z[name] - x for name, x in states_of(new)[0].prune_learned.items()}
    tiny.close(found, wanted)


def test_a_leaf_may_be_the_gate_of_two_groups() -> None:
    """Its task gradient is that of the loss, whatever the other group's scores are."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "q": jax.random.normal(keys[0], (4, 3, 5)),
        "out": jax.random.normal(keys[1], (3, 5, 2)),
    }
    x = jax.random.normal(keys[2], (6, 4))

    def fn(params: Any, x: Any) -> Any:
        return jnp.einsum(
            "bhd,hdo->bo", jnp.tanh(jnp.einsum("bi,ihd->bhd", x, params["q"])), params["out"]
        )

    net = jaxprune.trace(fn, params, x)
    names = [group.name for group in net.groups]
    assert [("q", k) in group.gates for k, group in zip((1, 2), net.groups, strict=True)]
    tx = jaxprune.filter_attention(
        optax.sgd(0.1), channels=net.channels(round_to=1), sparsity=0.3, begin=0, scores="free",
        strength=0.0, learner=optax.sgd(1.0),
    )  # fmt: skip
    z = {names[0]: jnp.array([-0.5, 0.5, 0.2]), names[1]: jnp.linspace(-1, 1, 5)}

    def seen(z: Any) -> Any:
        heads, dims = (module.activated(z[name]) for name in names)
        return {**params, "q": params["q"] * heads[None, :, None] * dims[None, None]}

    def loss(params: Any) -> Any:
        return jnp.sum(fn(params, x) ** 2)

    fresh: Any = tx.init(params)
    state = fresh._replace(prune_learned=z)
    _, new = jax.jit(tx.update)(jax.grad(loss)(seen(z)), state, params)
    found = {name: z[name] - new for name, new in states_of(new)[0].prune_learned.items()}
    tiny.close(found, jax.grad(lambda z: loss(seen(z)))(z))


def test_where_a_norm_follows_the_next_layer_the_level_of_scores_is_free() -> None:
    """A factor on all scores of a layer is divided out again: the sum of s dL/ds is 0."""
    keys = jax.random.split(jax.random.key(0), 3)
    first, second = jax.random.normal(keys[0], (4, 6)), jax.random.normal(keys[1], (6, 5))
    x = jax.random.normal(keys[2], (16, 4))

    def loss(s: Any) -> Any:
        h = jax.nn.relu(x @ first) * s @ second
        h = (h - h.mean(0)) / jnp.sqrt(h.var(0))
        return jnp.mean(jnp.tanh(h) * jnp.arange(5.0))

    s = jnp.linspace(0.5, 1.5, 6)
    gradient = jax.grad(loss)(s)
    assert float(jnp.abs(gradient).max()) > 1e-3
    assert abs(float(jnp.vdot(s, gradient))) < 1e-6


def test_a_gradient_that_is_not_finite_leaves_scores_finite() -> None:
    net, params, stats = traced()
    trail = run(method(net), BEGIN + LOOK, params, stats, poison=BEGIN + 1)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(trail[-1][1].prune_learned))
    assert sum(m.sum() for m in tiny.masks_of(trail[-1][1]).values()) == 10


def test_training_goes_on_from_any_age_bit_for_bit() -> None:
    net, params, stats = traced()
    tx = method(net, **TURNS)
    step = stepper(tx, stats)
    trail = run(tx, 9, params, stats, step)
    for n in (1, 3, 6):
        again = trail[n]
        for bad in (False,) * (9 - n):
            again = step(*again, bad)
        tiny.same_bits(again, trail[-1])


def test_what_is_learned_is_read_and_never_shipped() -> None:
    net, params, stats = traced()
    params, state = run(method(net), BEGIN + LOOK + 1, params, stats)[-1]
    assert UP in jaxprune.get_learned(state)
    assert jaxprune.phase_of(state).name == "train"
    active = jaxprune.active_params(params, state)
    tiny.same_bits(active, params)
    assert "filter_attention" in str(jaxprune.describe(state)["method"])
    assert "channels" in str(jaxprune.plan(method(net), params))


@pytest.mark.parametrize(
    ("scope", "scores"), [("global", "free"), ("layer", "free"), ("layer", "attention")]
)
def test_as_many_of_the_highest_stay_as_fit_within_a_cost(scope: str, scores: str) -> None:
    net, params, stats = traced()
    choice = net.channels(round_to=1, cost="parameters")
    values = {"sparsity": 0.5, "begin": 0, "attention_steps": 2, "scores": scores, "scope": scope}
    tx = jaxprune.filter_attention(inner(), channels=choice, learner=optax.adam(0.1), **values)
    state = run(tx, 2, params, stats)[-1][1]
    masks, cost = tiny.masks_of(state), net.cost("parameters")
    assert 0.3 * cost() < cost(masks) <= 0.5 * cost()
    if scores == "free":
        learned = {name: np.asarray(z) for name, z in jaxprune.get_learned(state).items()}
        if scope == "layer":  # places within a layer, and none of the scores themselves
            learned = {name: np.argsort(np.argsort(z)) / z.size for name, z in learned.items()}
        kept = min(float(z[masks[name]].min()) for name, z in learned.items())
        for name, z in learned.items():  # none is passed over that would have fitted
            if z[~masks[name]].max(initial=-np.inf) > kept:
                more = {**masks, name: np.arange(z.size) <= masks[name].sum()}
                assert cost(more) > 0.5 * cost()
    if scope == "layer":
        shares = [float(np.mean(mask)) for mask in masks.values()]
        assert max(shares) - min(shares) <= 2 / min(map(len, masks.values()))


def test_layers_whose_scores_are_equal_keep_the_same_share() -> None:
    net, params, stats = traced()
    choice = net.channels(round_to=1, cost="parameters")
    values = {"sparsity": 0.5, "begin": 0, "attention_steps": 1, "scores": "free"}
    still = optax.sgd(0.0)
    tx = jaxprune.filter_attention(inner(), channels=choice, learner=still, scope="layer", **values)
    state = run(tx, 1, params, stats)[-1][1]
    shares = [float(jnp.mean(mask)) for mask in jaxprune.get_masks(state).values()]
    assert max(shares) - min(shares) <= 1 / 8


def test_bad_arguments_get_one_clear_sentence() -> None:
    net, _, _ = traced()
    by_hand = {"hidden": jaxprune.units.Group(8, {"w": 1})}
    for values, message in (
        ({"sparsity": 1.0}, r"`sparsity` must lie in \[0, 1\), got 1.0"),
        ({"weight_steps": 3}, "`weight_steps` must be given with `stop`"),
        ({"stop": 30}, "`weight_steps` must be given with `stop`"),
        ({"weight_steps": 9, "stop": 4}, "`stop` must leave room for a cycle"),
        ({"scope": "all"}, "`scope` must be 'global' or 'layer' or 'cumulative'"),
        ({"scores": "none"}, "`scores` must be 'attention' or 'free'"),
        ({"penalty": "l1"}, "`penalty` must be 'budget' or 'mean'"),
        ({"attention_steps": 0}, "`attention_steps` must be at least 1"),
        ({"width": 0}, "`width` must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            method(net, **values)
    priced = net.channels(round_to=1, cost="parameters")
    given = {"sparsity": 0.5, "learner": optax.sgd(1.0), "begin": 0}
    with pytest.raises(ValueError, match='`scope` must be "global" or "layer" where channels'):
        jaxprune.filter_attention(inner(), channels=priced, scope="cumulative", **given)
    with pytest.raises(ValueError, match="`min_density` must be None where sums of scores"):
        method(net, scope="cumulative", min_density=0.1)
    with pytest.raises(TypeError, match="`learner` must be an optax optimizer"):
        method(net, learner=3)
    with pytest.raises(ValueError, match=r"`channels` must be network\.channels\(\.\.\.\)"):
        jaxprune.filter_attention(inner(), channels=by_hand, **given)
    with pytest.raises(
        ValueError, match=r"`channels` must be network\.channels\(\.\.\.\), got 'a n"
    ):
        jaxprune.filter_attention(inner(), channels=net, **given)
    with pytest.raises(ValueError, match="`inner` must be an optimizer where something is l"):
        jaxprune.filter_attention(None, channels=net.channels(round_to=1), **given)


def test_levels_of_different_layers_are_not_compared_in_silence() -> None:
    net, _, _ = traced()
    with pytest.warns(UserWarning, match="not comparable between layers"):
        method(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method(net, scope="layer")
        method(net, scores="free")
        method(net, residual="internal")
