"""What belongs to a layer beside its kernel: biases and norms, by place, name or pattern."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxprune.methods.companions import biases_of, norms_of


def leaves(**shapes: tuple[int, ...]) -> dict[str, Any]:
    return {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}


def test_biases_lie_beside_their_kernels() -> None:
    tree = leaves(**{
        "a/kernel": (2, 3), "a/bias": (3,), "b/w": (2, 3), "b/b": (3,), "c/kernel": (2, 3),
        "norm/scale": (3,), "norm/bias": (3,),
        "cell/weight_hh": (3, 3), "cell/weight_ih": (3, 2), "cell/bias": (3,),
    })  # fmt: skip
    paths = ["a/kernel", "b/w", "c/kernel", "cell/weight_hh", "cell/weight_ih"]
    found = biases_of(paths, tree)
    assert found == {
        "a/kernel": ["a/bias"], "b/w": ["b/b"], "c/kernel": [],
        "cell/weight_hh": [], "cell/weight_ih": [],
    }  # fmt: skip
    assert biases_of(["cell/weight_hh"], tree) == {"cell/weight_hh": []}


@pytest.mark.parametrize(
    ("layer", "norm", "found"),
    [
        ("conv_0", "norm_0", True),
        ("Conv_0", "BatchNorm_0", True),
        ("conv1", "bn1", True),
        ("stem_conv", "stem_bn", True),
        ("conv", "norm", True),
        ("conv_0", "norm_1", False),
        ("Dense_0", "LayerNorm_0", False),  # a norm of a transformer comes before its layer
        ("conv_0", "down/norm_0", False),
    ],
)
def test_norms_are_found_by_name(layer: str, norm: str, found: bool) -> None:
    tree = leaves(**{f"block/{layer}/kernel": (3, 3, 4, 8), f"block/{norm}/scale": (8,),
                     f"block/{norm}/bias": (8,)})  # fmt: skip
    path = f"block/{layer}/kernel"
    wanted = {path: [f"block/{norm}/scale", f"block/{norm}/bias"]} if found else {}
    assert norms_of([path], tree) == wanted


def test_a_norm_of_another_width_is_no_partner() -> None:
    tree = leaves(**{"conv/kernel": (3, 3, 4, 8), "bn/scale": (4,), "bn/bias": (4,)})
    assert norms_of(["conv/kernel"], tree) == {}


def test_norms_are_given_by_pattern_with_groups() -> None:
    tree = leaves(**{"a_1/kernel": (4, 8), "after_1/weight_norm/scale": (8,), "b/kernel": (4, 8),
                     "b_conv/kernel": (3, 3, 4, 8), "b_norm/scale": (8,)})  # fmt: skip
    given = {r"a_(\d)": r"after_\1/weight_norm", "b_conv": None}
    paths = [path for path in tree if path.endswith("kernel")]
    assert norms_of(paths, tree, given) == {"a_1/kernel": ["after_1/weight_norm/scale"]}
    assert norms_of(paths, tree)["b_conv/kernel"] == ["b_norm/scale"]
    with pytest.raises(ValueError, match=r"`norms` must name a norm with a scale of 8.*'nothing'"):
        norms_of(paths, tree, {"b/": "nothing"})
    with pytest.raises(ValueError, match="`norms` must match at least one path"):
        norms_of(paths, tree, {"missing": "b_norm"})


def test_one_norm_follows_one_layer() -> None:
    tree = leaves(**{"a/kernel": (4, 8), "b/kernel": (4, 8), "norm/scale": (8,)})
    expected = (
        r"`norms` must name each norm for one layer, 'norm/scale' for 'a/kernel', got 'b/kernel'"
    )
    with pytest.raises(ValueError, match=expected):
        norms_of(["a/kernel", "b/kernel"], tree, {"": "norm"})
