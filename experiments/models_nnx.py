"""The MLP of `models.py` in NNX."""

import itertools
from collections.abc import Sequence

import jax
from flax import nnx

_he = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class MLP(nnx.Module):
    """Dense layers with ReLU between them."""

    def __init__(
        self, inputs: int, classes: int, widths: Sequence[int] = (128, 64), *, rngs: nnx.Rngs
    ) -> None:
        """Build the layers.

        Args:
          inputs: number of pixels of an image.
          classes: number of classes.
          widths: width of each hidden layer.
          rngs: keys of the initial weights.
        """
        sizes = [inputs, *widths]
        hidden = [
            nnx.Linear(before, after, kernel_init=_he, rngs=rngs)
            for before, after in itertools.pairwise(sizes)
        ]
        self.hidden = nnx.List(hidden)
        self.classifier = nnx.Linear(sizes[-1], classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[batch, classes]` of images `[batch, ...]`."""
        x = x.reshape(x.shape[0], -1)
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return self.classifier(x)
