"""Cut networks as programs: exported, sharded, cached, with derivatives of one's own."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_shrink import halved, traced

import jaxprune

pytestmark = pytest.mark.usefixtures("standard_promotion")

RELOADED = """
import sys
import numpy as np
from jax import export
with open(sys.argv[1], "rb") as file:
    fn = export.deserialize(bytearray(file.read()))
for batch in (1, 5):
    x = np.linspace(-1, 1, batch * 192, dtype=np.float32).reshape(batch, 8, 8, 3)
    np.save(f"{sys.argv[1]}.{batch}.npy", fn.call(x))
"""


@pytest.mark.parametrize("baked", [True, False])
def test_it_is_exported_with_a_symbolic_batch(baked: bool, tmp_path: Path) -> None:
    """Weights baked in, it runs in a process that knows nothing of this library."""
    net, params, stats = traced()
    small = jaxprune.shrink(net, params, halved(net), also=stats)
    x = jax.ShapeDtypeStruct(export.symbolic_shape("batch, 8, 8, 3"), jnp.float32)

    def of_images(x: Any) -> Any:
        return small.fn(small.params, small.also, x)

    if not baked:
        shapes = jax.eval_shape(lambda: (small.params, small.also))
        exported = export.export(jax.jit(small.fn))(*shapes, x)
        again = export.deserialize(exported.serialize())
        for batch in (1, 5):
            x = jax.random.normal(jax.random.key(batch), (batch, 8, 8, 3))
            tiny.close(again.call(small.params, small.also, x), of_images(x))
        return
    file = tmp_path / "net.bin"
    file.write_bytes(export.export(jax.jit(of_images))(x).serialize())
    subprocess.run([sys.executable, "-c", RELOADED, str(file)], check=True)
    for batch in (1, 5):
        x = np.linspace(-1, 1, batch * 192, dtype=np.float32).reshape(batch, 8, 8, 3)
        tiny.close(np.load(f"{file}.{batch}.npy"), of_images(x))


def test_it_is_traced_once_for_each_shape() -> None:
    traces = 0

    def fn(params: Any, x: Any) -> Any:
        nonlocal traces
        traces += 1
        return jax.nn.relu(x @ params["a"]) @ params["b"]

    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
    net = jaxprune.trace(fn, params, jnp.ones((1, 3)))
    small = jaxprune.shrink(net, params, {"a[1]": np.array([True, False, True, True])})
    assert traces == 1
    for _ in range(3):
        for batch in (1, 2):
            small.fn(small.params, jnp.ones((batch, 3)))
    assert traces == 3
    text = jax.jit(small.fn).lower(small.params, jnp.ones((2, 3))).as_text()
    assert "4x" not in text
    assert "x4x" not in text
    assert "3x3x" in text, "the widths are those that are left"


def test_custom_derivatives_are_kept() -> None:
    """Those of the primitives within would be others."""

    @jax.custom_jvp
    def act(x: Any) -> Any:
        return jnp.where(x > 0, x, 0)

    @act.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return act(primals[0]), 3 * jnp.tanh(primals[0]) * tangents[0]

    @jax.custom_vjp
    def gate(x: Any, scale: Any) -> Any:
        return x * scale

    def backward(saved: Any, g: Any) -> Any:
        return 7 * g * saved[1], 5 * (saved[0] * g).sum(0)

    gate.defvjp(lambda x, scale: (gate(x, scale), (x, scale)), backward)

    def fn(params: Any, x: Any) -> Any:
        h = act(x @ params["a"])
        h = h @ params["c"]
        return jax.nn.gelu(gate(h, params["scale"])) @ params["b"]

    rng = np.random.default_rng(0)
    shapes = {"a": (3, 6), "c": (6, 4), "scale": (4,), "b": (4, 2)}
    params = {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()
    }
    x = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    net = jaxprune.trace(fn, params, x)
    assert [group.size for group in net.groups] == [6, 4]
    small = jaxprune.shrink(net, params, halved(net))
    masked = small.restore(small.params)

    def scalar(fn: Any) -> Any:
        return lambda params: jnp.sum(jnp.sin(fn(params, x)))

    ours, theirs = (jax.grad(scalar(f))(p) for f, p in ((small.fn, small.params), (fn, masked)))
    tiny.close(ours, small.cut(theirs))

    def twice(fn: Any) -> Any:
        return jax.grad(lambda params: optax.tree.sum(jax.grad(scalar(fn))(params)))

    def kept(params: Any) -> Any:  # of the masked network, of which the rest stays 0
        ones = small.restore(jax.tree.map(jnp.ones_like, small.params))
        return jax.tree.map(jnp.multiply, params, ones)

    theirs = twice(lambda params, x: fn(kept(params), x))(masked)
    tiny.close(twice(jax.jit(small.fn))(small.params), small.cut(theirs))


@pytest.mark.several_devices
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_params_are_cut_where_they_lie(kind: Any) -> None:
    def fn(params: Any, x: Any) -> Any:
        whole = P() if kind == AxisType.Explicit else None  # what a sum over shards lies on
        h = jax.nn.relu(x @ params["a"] + params["bias"])
        return jnp.einsum("bf,fo->bo", h, params["b"], out_sharding=whole)

    rng = np.random.default_rng(0)
    shapes, x = {"a": (3, 16), "bias": (16,), "b": (16, 2)}, jnp.asarray(rng.normal(size=(5, 3)))
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    masks = {"a[1]": rng.permutation(16) < 8}
    plain = jax.nn.relu(x @ params["a"] + params["bias"])[:, masks["a[1]"]]
    wanted = plain @ params["b"][masks["a[1]"]]
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        layout = {"a": P(None, "x"), "bias": P("x"), "b": P("x", None)}
        layout = {name: NamedSharding(mesh, spec) for name, spec in layout.items()}
        params, x = jax.device_put(params, layout), jax.device_put(x, NamedSharding(mesh, P()))
        net = jaxprune.trace(fn, params, x)
        small = jaxprune.shrink(net, params, masks)
        if kind == AxisType.Explicit:
            assert jax.tree.map(lambda x: jax.typeof(x).sharding.spec, small.params) == {
                name: each.spec for name, each in layout.items()
            }
        tiny.close(jax.jit(small.fn)(small.params, x), wanted)
        assert jax.tree.map(jnp.shape, small.restore(small.params)) == shapes
        grads = jax.jit(jax.grad(lambda p: jnp.sum(small.fn(p, x) ** 2)))(small.params)
        assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, small.params)
        if kind == AxisType.Explicit:
            with pytest.raises(ValueError, match="divi"):
                jaxprune.shrink(net, params, {"a[1]": np.arange(16) < 9})


@pytest.mark.parametrize(
    "constant",
    [
        lambda: jnp.linspace(1.0, 2.0, 6),
        lambda: jnp.concatenate([jnp.ones(5), jnp.full(1, 2.0)]),
        lambda: jnp.ones(6).at[2].set(3.0),
    ],
)
def test_constants_are_cut_with_what_they_meet(constant: Any) -> None:
    """However they are made: they are made whole, and then cut."""

    def fn(params: Any, x: Any) -> Any:
        return (x @ params["a"]) * constant() @ params["b"]

    params = {"a": jnp.arange(24.0).reshape(4, 6), "b": jnp.arange(18.0).reshape(6, 3)}
    net = jaxprune.trace(fn, params, jnp.ones((2, 4)))
    (group,) = net.groups
    small = jaxprune.shrink(net, params, {group.name: np.array([1, 0, 1, 1, 0, 0], bool)})
    tiny.close(
        small.fn(small.params, jnp.ones((2, 4))), fn(small.restore(small.params), jnp.ones((2, 4)))
    )


def test_a_rule_that_says_what_is_not_so_is_refused() -> None:
    primitive = jex.core.Primitive("stretched_to_six")
    primitive.def_abstract_eval(lambda x: x.update(shape=(x.shape[0], 6)))
    primitive.def_impl(lambda x: jnp.zeros((x.shape[0], 6)))
    jaxprune.register_rule(primitive, "elementwise")

    def fn(params: Any, x: Any) -> Any:
        return primitive.bind(x @ params["a"]) @ params["b"]

    params = {"a": jnp.ones((4, 6)), "b": jnp.ones((6, 3))}
    net = jaxprune.trace(fn, params, jnp.ones((2, 4)))
    small = jaxprune.shrink(net, params, {"a[1]": np.arange(6) < 4})
    with pytest.raises(ValueError, match="`rule` must say what stretched_to_six at test_shrink_pr"):
        small.fn(small.params, jnp.ones((2, 4)))
