"""What sparse training of a ResNet-50 costs: operations as fractions of the dense network's.

    python -m experiments.flops

Nothing is trained or allocated: the network is traced at 224 x 224, its products are counted, and
the densities are those of `jaxprune.distributions`. Uniform densities leave the first layer dense
and give all others exactly 1 - s, the classifier included, as in the paper.

References: Evci et al., Rigging the Lottery, 2020, https://arxiv.org/abs/1911.11134, table 2 and
the appendix on FLOPs; its network has the stride in the 3x3 convolutions.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments import bench
from jaxprune import distributions
from jaxprune.flops import forward_flops

EVERY = 100
"""Steps between two changes of masks."""


def resnet50(params: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
    """Logits ``[batch, 1000]``: the products of a ResNet-50, without its norms.

    Args:
      params: kernels of the shapes of `bench.resnet50_shapes`.
      images: ``[batch, 224, 224, 3]``, or any other size.

    Returns:
      float32.

    References:
      He et al., Deep Residual Learning for Image Recognition, 2015,
      https://arxiv.org/abs/1512.03385; the place of the strides is that of later implementations.
    """

    def conv(x: jax.Array, name: str, stride: int = 1) -> jax.Array:
        kernel, layout = params[f"{name}/kernel"], ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=layout
        )

    x = jax.nn.relu(conv(images, "stem", 2))
    window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, "SAME")
    for name in [path.removesuffix("_a/kernel") for path in params if path.endswith("_a/kernel")]:
        first = f"{name}_skip/kernel" in params
        stride = 2 if first and not name.startswith("stage0") else 1
        skip = conv(x, f"{name}_skip", stride) if first else x
        y = jax.nn.relu(conv(x, f"{name}_a"))
        y = jax.nn.relu(conv(y, f"{name}_b", stride))
        x = jax.nn.relu(conv(y, f"{name}_c") + skip)
    return x.mean(axis=(1, 2)) @ params["head/kernel"]


def layers() -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, float]]:
    """The kernels of a ResNet-50 and the operations of each for one image of 224 x 224.

    Returns:
      Shapes and operations by path, 54 of each.

    Examples:
      >>> from experiments import flops
      >>> shapes, operations = flops.layers()
      >>> len(shapes), round(sum(operations.values()) / 1e9, 2)
      (54, 8.18)
    """
    shapes = {
        path: jax.ShapeDtypeStruct(shape, jnp.float32)
        for path, shape in bench.resnet50_shapes().items()
    }
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    return shapes, forward_flops(resnet50, shapes, images)


def densities(shapes: Mapping[str, Any], kind: str, sparsity: float) -> dict[str, float]:
    """The share kept of each kernel.

    Args:
      shapes: the kernels by path.
      kind: "uniform", with the first layer dense, or "erk".
      sparsity: of the tree, or of each kernel but the first.

    Returns:
      ``{path: density}``.

    Examples:
      >>> from experiments import flops
      >>> shapes, _ = flops.layers()
      >>> found = flops.densities(shapes, "uniform", 0.9)
      >>> round(found["stem/kernel"], 4), round(found["head/kernel"], 4)
      (1.0, 0.1)
    """
    if kind == "erk":
        return distributions.erk(shapes, sparsity)
    others = distributions.uniform(shapes, sparsity, where=lambda path, _: "stem" not in path)
    return {"stem/kernel": 1.0} | {path: others[path] for path in shapes if "stem" not in path}


def rows() -> dict[tuple[str, float], dict[str, float]]:
    """Costs at 80 and 90 %, uniform and ERK, as fractions of dense.

    With f_s the operations of a forward pass of the sparse network and f_d those of the dense one:
    test ``f_s / f_d``; SET and static masks ``3 f_s / (3 f_d)``; RigL, which needs the dense
    gradient once in every 100 steps more, ``(100 * 3 f_s + 2 f_s + f_d) / 101 / (3 f_d)``.

    Returns:
      ``{(distribution, sparsity): {column: fraction}}``.

    Examples:
      >>> from experiments import flops
      >>> {name: round(cost, 3) for name, cost in flops.rows()["erk", 0.9].items()}
      {'test': 0.242, 'static, SET': 0.242, 'RigL': 0.244}

    References:
      Evci et al., Rigging the Lottery, 2020, https://arxiv.org/abs/1911.11134, appendix on FLOPs.
    """
    shapes, operations = layers()
    total, found = sum(operations.values()), {}
    for kind in ("uniform", "erk"):
        for sparsity in (0.8, 0.9):
            density = densities(shapes, kind, sparsity)
            sparse = sum(operations[path] * density[path] for path in shapes) / total
            rigl = (3 * sparse * EVERY + 2 * sparse + 1) / (EVERY + 1) / 3
            found[kind, sparsity] = {"test": sparse, "static, SET": sparse, "RigL": rigl}
    return found


def main() -> None:
    """Prints the table."""
    print("ResNet-50 at 224 x 224: operations as fractions of dense (54 layers, 8.18 G dense)")
    print("| densities | sparsity | test | training: static, SET, SNIP | training: RigL |")
    print("|---|---|---|---|---|")
    for (kind, sparsity), costs in rows().items():
        cells = " | ".join(f"{cost:.3f}" for cost in costs.values())
        print(f"| {kind} | {sparsity:.0%} | {cells} |")
    print("The first step of SNIP is dense, and all others as those of static masks.")


if __name__ == "__main__":
    main()
