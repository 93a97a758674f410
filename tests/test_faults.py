"""Bad input and faults, each with a test: those that no other file holds.

| fault | what must happen | test |
|---|---|---|
| 1 to 3 | sparsity out of range: an error, a percentage with a hint | here, test_schedules |
| 4 | sparsity 0 is the plain optimizer | here |
| 5, 6, 7 | patterns: no match, two on one leaf, a typo in an override | test_transform, here |
| 8, 9, 10 | no params, other gradients, other structure | test_transform |
| 11, 12 | empty, scalar, integer, bool, complex leaves | test_transform, test_trees |
| 13 | narrow dtypes are kept, zeros exact | test_contract (bfloat16), here (float16) |
| 14, 52 | all-equal and all-zero scores | test_contract, test_selection (sharded) |
| 15, 16 | NaN and infinite weights | here |
| 17, 18 | NaN gradients at a refresh, on pruned entries | test_contract, test_transform |
| 19 | exact zeros over 1,000 steps of decay and momentum | here |
| 20 | something chained after | test_checks |
| 21, 22, 23 | MultiSteps, skipped steps, wrappers outside | test_contract, here |
| 24 | every optimizer | test_contract; all of optax by `make compat` |
| 25 | steps of regrown weights | test_family |
| 26, 27, 28 | N:M and blocks that do not fit | test_masks, test_masks_patterns |
| 30, 31 | a layer pruned to nothing | here, test_report, test_distributions |
| 32 | ramps and intervals that cannot be | here, test_schedules |
| 33 | a step counter near its end | here |
| 34, 35, 38 | resume: every step, other rules, untyped | test_contract, _state, _readers |
| 36 | dense weights into a pruned run | here |
| 39, 40 | other device counts, Auto and Explicit meshes | test_contract_devices |
| 43, 53 | donation, no second trace | test_contract |
| 44, 45 | vmap, scan; remat and scanned layers | test_contract_devices, here |
| 49 | containers | test_contract_trees, test_trees |
| 51 | killed between steps | an update is one pure function: test_contract resumes each |
| 54 | x64, strict promotion, debug_nans | here; conftest makes all tests strict |
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from methods_table import METHODS, STEPS, Row, every_method, train_and_resume
from tiny import Loop, theirs, updater

import jaxprune

HALF = {"sparsity": 0.5, "ramp": (0, 2), "every": 1}
SIZED = {name: row for name, row in METHODS.items() if row.takes("sparsity")}  # N:M says it itself
RAMPED = {name: row for name, row in SIZED.items() if row.ramp}
every_sized = pytest.mark.parametrize("row", SIZED.values(), ids=SIZED)
ramped = pytest.mark.parametrize("row", RAMPED.values(), ids=RAMPED)


def spaced(*shape: int) -> Any:
    """Entries 1, -2, 3, -4, ..."""
    numbers = np.arange(1, 1 + np.prod(shape), dtype="f4").reshape(shape)
    return jnp.asarray(numbers * (-1) ** np.arange(numbers.size).reshape(shape), jnp.float32)


@every_sized
@pytest.mark.parametrize(
    ("sparsity", "hint"),
    [
        (1.5, "1.5"),
        (-0.1, "-0.1"),
        (np.nan, "nan"),
        (1.0, "1.0"),
        (90, "did you mean 0.9"),
        (100, ""),
    ],
)
def test_1_a_sparsity_out_of_range_is_refused(row: Row, sparsity: float, hint: str) -> None:
    whole = row.takes("gamma")  # a penalty may push without end
    if whole and sparsity == 1:
        row(optax.sgd(0.1), sparsity=sparsity, attention_init=0.5)
        return
    end = r"\]" if whole else r"\)"
    with pytest.raises(ValueError, match=rf"`sparsity` must lie in \[0, 1{end}, got .*{hint}"):
        row(optax.sgd(0.1), sparsity=sparsity)


@every_sized
def test_4_sparsity_0_is_the_plain_optimizer(row: Row) -> None:
    """Unless the method freezes what is kept, while it explores."""
    bare = theirs(optax.adamw(0.05, weight_decay=0.1))
    a = b = tiny.params()
    step, plain = updater(row(bare, sparsity=0.0)), updater(bare)
    state, slots = row(bare, sparsity=0.0).init(a), bare.init(b)
    for n in range(3):
        (a, state), (b, slots) = step(tiny.normal(n), state, a), plain(tiny.normal(n), slots, b)
    if row.explores_after:
        assert (np.asarray(a["body"]["kernel"]) != np.asarray(b["body"]["kernel"])).any()
        return
    tiny.close(a, b)
    assert float(jaxprune.sparsity_of(state)) == 0


def test_4_a_pure_mask_of_sparsity_0_is_bit_equal_without_jit() -> None:
    bare = theirs(optax.sgd(0.1, momentum=0.9))
    tx = jaxprune.gradual_magnitude(bare, sparsity=0.0, ramp=(0, 4), every=4)
    a = b = tiny.params()
    state, slots = tx.init(a), bare.init(b)
    with jax.disable_jit():
        for n in range(2):
            ours, state = tx.update(tiny.normal(n), state, a)
            others, slots = bare.update(tiny.normal(n), slots, b)
            a, b = optax.apply_updates(a, ours), optax.apply_updates(b, others)
    tiny.same_bits(a, b)


def test_6_the_first_of_two_patterns_wins_and_the_plan_shows_it() -> None:
    overrides = {"head": 0.75, "kernel": 0.5}
    tx = jaxprune.gradual_magnitude(None, sparsity=0.625, ramp=(0, 4), overrides=overrides)
    plan = jaxprune.plan(tx, {m: {"kernel": jnp.ones((4, 4))} for m in ("body", "head")})
    found = {leaf.path: leaf.density_end for leaf in plan.leaves if leaf.pruned}
    assert found == {"body/kernel": 0.5, "head/kernel": 0.25}


@every_sized
def test_7_a_typo_in_an_override_is_refused_with_near_paths(row: Row) -> None:
    if not row.takes("overrides"):
        with pytest.raises(TypeError, match="overrides"):
            row(optax.sgd(0.1), overrides={"hed/kernel": 0.5})
        return
    with pytest.raises(ValueError, match=r"`overrides` must match.*did you mean 'head/kernel'"):
        row(optax.sgd(0.1), overrides={"hed/kernel": 0.5}).init(tiny.params())


@every_method
def test_13_float16_params_stay_float16(row: Row) -> None:
    tx = row(theirs(optax.sgd(0.1, momentum=0.9)))
    params, _ = train_and_resume(row, Loop(tx, compiler_options=tiny.quick()), jnp.float16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float16)}


@ramped
def test_15_a_nan_weight_skips_refreshes_and_is_counted(row: Row) -> None:
    params = {"kernel": spaced(4, 5).at[0, 0].set(jnp.nan)}
    tx = row(theirs(optax.sgd(0.0)), **HALF)
    step, state = updater(tx), tx.init(params)
    for n in range(1, 3):
        params, state = step({"kernel": jnp.zeros((4, 5))}, state, params)
        assert int(state.prune_skipped) == n
        assert tiny.kept(state) == {"kernel": 20}
    assert "skipped refreshes: 2" in str(jaxprune.summarize(params, state))


def test_15_a_nan_weight_never_ranks_highest() -> None:
    params = {"kernel": spaced(4, 5).at[3, 4].set(jnp.nan)}
    pruned, _ = jaxprune.prune_once(params, 0.5)
    ranks = np.abs(np.asarray(spaced(4, 5))) >= 10  # the ten largest but the last, which is NaN
    expected = np.where(ranks & ~np.isnan(params["kernel"]), params["kernel"], 0)
    np.testing.assert_array_equal(pruned["kernel"], expected)


def test_16_an_infinite_weight_is_an_ordinary_one_that_stays() -> None:
    params = {"kernel": spaced(4, 5).at[0, 0].set(jnp.inf)}
    tx: Any = jaxprune.gradual_magnitude(optax.sgd(0.1), **HALF)
    step, state = updater(tx), tx.init(params)
    for _ in range(2):
        params, state = step({"kernel": jnp.zeros((4, 5))}, state, params)
    tiny.on_support(params, state)
    assert tiny.kept(state) == {"kernel": 10}
    assert int(state.prune_skipped) == 0
    assert params["kernel"][0, 0] == jnp.inf


def test_16_an_infinite_weight_that_is_masked_cannot_be_zeroed_and_is_named() -> None:
    """No update makes 0 of an infinity: inf - inf is NaN."""
    masks = {"kernel": jnp.eye(3, dtype=bool)}
    params = {"kernel": spaced(3, 3).at[0, 1].set(jnp.inf)}
    tx = jaxprune.static(optax.sgd(0.1), masks=masks)
    params, state = updater(tx)({"kernel": jnp.zeros((3, 3))}, tx.init(params), params)
    assert np.isnan(params["kernel"]).sum() == 1
    with pytest.raises(ValueError, match="must be 0 where pruned, got 1 other entries at 'kernel'"):
        jaxprune.verify(params, state)


@every_method
def test_19_zeros_are_exact_over_a_thousand_steps(row: Row) -> None:
    """Under Adam, momentum and weight decay, with noise for gradients, at every step."""
    tx = row(theirs(optax.adamw(0.05, b1=0.95, weight_decay=0.1)))
    off, cut = _walk(tx, tiny.params(), tx.init(tiny.params()))
    assert not np.delete(np.asarray(off), [n - 1 for n in row.explores_after]).any()
    if not row.counted:
        assert (np.asarray(cut)[4:] == 72 - sum(row.target.values())).all()


def _walk(tx: Any, params: Any, state: Any) -> Any:
    def body(carry: Any, key: Any) -> Any:
        params, state = carry
        keys = jax.tree.unflatten(jax.tree.structure(params), list(jax.random.split(key, 3)))
        noise = jax.tree.map(lambda p, k: jax.random.normal(k, p.shape), params, keys)
        updates, state = tx.update(noise, state, params)
        params: Any = optax.apply_updates(params, updates)
        masks = jaxprune.get_masks(state)
        pairs = [(params[m]["kernel"], masks[m]["kernel"]) for m in ("body", "head")]
        bits = [jax.lax.bitcast_convert_type(p, jnp.int32) for p, _ in pairs]
        off = sum(jnp.sum((b != 0) & ~m) for b, (_, m) in zip(bits, pairs, strict=True))
        return (params, state), (off, sum(jnp.sum(~m) for _, m in pairs))

    def run(params: Any, state: Any) -> Any:
        return jax.lax.scan(body, (params, state), jax.random.split(jax.random.key(0), 1000))[1]

    return jax.jit(run, compiler_options=tiny.quick())(params, state)


@ramped
def test_22_skipped_steps_do_not_run_the_schedule_ahead(row: Row) -> None:
    tx: Any = theirs(optax.apply_if_finite(row(theirs(optax.sgd(0.1))), 9))
    step, params = updater(tx), tiny.params()
    state = tx.init(params)
    nan = jax.tree.map(lambda p: p * jnp.nan, params)
    for n in range(1, 7):
        for _ in range(2):
            held = tiny.saved((params, state.inner_state))
            params, state = step(nan, state, params)
            tiny.same_bits((params, state.inner_state), held)
        params, state = step(tiny.normal(n), state, params)
        row.check(params, state, n)


@every_method
def test_23_masked_outside_prunes_what_it_is_given(row: Row) -> None:
    head = {"body": {"kernel": False, "bias": False}, "head": {"kernel": True}}
    tx = optax.masked(row(theirs(optax.sgd(0.1)), sparsity=0.5), head)
    step, params = updater(tx), tiny.params()
    state = tx.init(params)
    for n in range(5):
        params, state = step(tiny.normal(n), state, params)
    assert tiny.kept(state) == {"head/kernel": row.kept_of(40, 0.5, state)}
    tiny.on_support(params, state)
    jaxprune.verify(params, state)


def test_30_a_layer_of_small_weights_keeps_its_least() -> None:
    """Under a ranking over the tree it would be pruned to nothing, and the summary says so."""
    params = {"a": 1e-3 * spaced(4, 5), "b": spaced(4, 5)}
    found = {}
    for floor in (0.0, 0.1):
        tx = jaxprune.straight_through(theirs(optax.sgd(0.0)), min_density=floor, **HALF)
        step, seen, state = updater(tx), params, tx.init(params)
        for _ in range(2):
            seen, state = step(tiny.zeros_like(params), state, seen)
        summary = jaxprune.summarize(seen, state)
        found[floor] = tiny.kept(state), summary.collapsed, "layer collapse" in str(summary)
    assert found[0.0] == ({"a": 0, "b": 20}, ("a",), True)
    assert found[0.1] == ({"a": 2, "b": 18}, (), False)


@ramped
@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"ramp": (4, 2)}, ValueError, "`ramp` must .* in order"),
        ({"every": 0}, ValueError, "must be at least 1, got 0"),
        ({"every": None}, TypeError, "must be an integer, got None"),
        ({"ramp": None}, ValueError, r"a number needs ramp=\(begin, end\)"),
        ({"ramp": 4}, ValueError, r"`ramp` must be \(begin, end\), got 4"),
        ({"sparsity": lambda n: 0.5}, ValueError, "be None where `sparsity` is a schedule"),
        ({"distribution": "earl"}, ValueError, "`distribution` must be global, uniform, erk"),
        ({"min_density": 2}, ValueError, r"`min_density` must lie in \[0, 1\], got 2"),
    ],
)
def test_32_what_cannot_be_is_refused(row: Row, values: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        row(optax.sgd(0.1), **values)


@ramped
def test_32_a_ramp_of_no_length_jumps_at_its_step(row: Row) -> None:
    tx = row(theirs(optax.sgd(0.1)), sparsity=0.5, ramp=(3, 3), every=16)
    step, params, counts = updater(tx), tiny.params(), []
    state = tx.init(params)
    for n in range(4):
        params, state = step(tiny.normal(n), state, params)
        counts.append(sum(tiny.kept(state).values()))
    assert counts == [72, 72, 36, 36]


@every_method
def test_33_the_step_counter_saturates(row: Row) -> None:
    """Masks and support hold; nothing wraps around to the ramp's begin."""
    tx = row(theirs(optax.sgd(0.1)))
    step, params = updater(tx), tiny.params()
    state = tx.init(params)
    for n in range(STEPS):
        params, state = step(tiny.normal(n), state, params)
    last = jnp.int32(2**31 - 2)
    state = state._replace(prune_count=last)
    for n in range(3):
        params, state = step(tiny.normal(n), state, params)
        assert int(state.prune_count) == 2**31 - 1
        wanted = row.counted(state) if row.counted else row.target
        assert sum(tiny.kept(state).values()) == sum(wanted.values())
        tiny.on_support(params, state)
        jaxprune.verify(params, state)


@every_method
def test_36_dense_weights_in_a_pruned_run_are_a_loud_choice(row: Row) -> None:
    """`verify` names them; the next update zeroes what is off the mask, or lands on the copy."""
    tx = row(theirs(optax.sgd(0.0)))
    step, params = updater(tx), tiny.params()
    state = tx.init(params)
    for n in range(STEPS):
        params, state = step(tiny.normal(n), state, params)
    dense = tiny.normal(5)
    with pytest.raises(
        ValueError, match=r"`params` must .* at 'body/kernel'.*`rebase\(params, opt"
    ):
        jaxprune.verify(dense, state)
    again, after = step(tiny.zeros_like(dense), state, dense)
    tiny.on_support(again, after)
    if state.prune_spec.parts.view.copy:
        tiny.close(after.prune_dense["head"], state.prune_dense["head"])
        tiny.close(again["head"], jaxprune.view_params(params, after)["head"])


@every_method
def test_45_scanned_layers_under_remat_end_on_target(row: Row) -> None:
    params = {"layers": {"kernel": spaced(3, 4, 4) / 50}, "head": {"kernel": spaced(4, 2)}}

    def loss(params: Any) -> Any:
        def layer(x: Any, kernel: Any) -> Any:
            return jnp.tanh(kernel @ x), None

        x, _ = jax.lax.scan(jax.checkpoint(layer), jnp.ones(4), params["layers"]["kernel"])
        return jnp.sum((x @ params["head"]["kernel"] - 1) ** 2)

    groups = {} if row.takes("sparsity") else {"stacked": {"layers": 0}}
    tx = row(theirs(optax.adamw(0.01)), sparsity=0.5, **groups)
    step, grad, state = updater(tx), jax.jit(jax.grad(loss)), tx.init(params)
    for _ in range(5):
        params, state = step(grad(params), state, params)
    tiny.on_support(params, state, whole=not row.grows)
    assert sum(tiny.kept(state).values()) == row.kept_of(56, 0.5, state)


@every_method
def test_54_x64_keeps_its_dtypes_and_nothing_is_nan(row: Row) -> None:
    with jax.enable_x64(True), jax.debug_nans(True):
        params = jax.tree.map(lambda p: p.astype(jnp.float64), tiny.params())
        params["head"]["kernel"] = params["head"]["kernel"].astype(jnp.float32)
        dtypes = jax.tree.map(lambda p: p.dtype, params)
        tx = row(theirs(optax.sgd(0.1, momentum=0.9)))
        step, state = updater(tx), tx.init(params)
        before = tiny.layout(state)
        for n in range(1, 5):
            grads = jax.tree.map(lambda g, p: g.astype(p.dtype), tiny.normal(n), params)
            params, state = step(grads, state, params)
            row.check(params, state, n)
        assert jax.tree.map(lambda p: p.dtype, params) == dtypes
        assert tiny.layout(state) == before
