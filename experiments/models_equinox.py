"""The MLP of `models.py` in Equinox, for one image: use it under `jax.vmap`."""

from collections.abc import Sequence

import equinox as eqx
import jax


class MLP(eqx.Module):
    """Dense layers with ReLU between them.

    Attributes:
      hidden: the hidden layers.
      classifier: the last layer.
    """

    hidden: list[eqx.nn.Linear]
    classifier: eqx.nn.Linear

    def __init__(
        self, inputs: int, classes: int, widths: Sequence[int] = (128, 64), *, key: jax.Array
    ) -> None:
        """Build the layers.

        Args:
          inputs: number of pixels of an image.
          classes: number of classes.
          widths: width of each hidden layer.
          key: key of the initial weights.
        """
        sizes = [inputs, *widths]
        last, *keys = jax.random.split(key, len(sizes))
        self.hidden = [
            eqx.nn.Linear(before, after, key=k)
            for before, after, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        ]
        self.classifier = eqx.nn.Linear(sizes[-1], classes, key=last)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[classes]` of one image."""
        x = x.reshape(-1)
        for layer in self.hidden:
            x = jax.nn.relu(layer(x))
        return self.classifier(x)
