"""Trees with stacked layers, and the same layers apart."""

import jax.numpy as jnp
import numpy as np

LENGTH = 3
SLICES = {"wide": (6, 20), "deep": (3, 1, 4), "alone": (5, 4)}


def slices_of(x, axis):
    return list(np.moveaxis(np.asarray(x), axis, 0))


def stacked_tree(axis, leaf):
    """Two stacked leaves and a plain one, and the tree of the same layers apart."""
    apart = {
        "wide": {str(i): {"kernel": leaf(SLICES["wide"])} for i in range(LENGTH)},
        "deep": {str(i): {"kernel": leaf(SLICES["deep"])} for i in range(LENGTH)},
        "alone": {"kernel": leaf(SLICES["alone"])},
    }
    together = {
        name: {"kernel": jnp.stack([x["kernel"] for x in apart[name].values()], axis)}
        for name in ("wide", "deep")
    }
    return {**together, "alone": apart["alone"]}, apart


def equal_by_slice(together, apart, axis, check=np.testing.assert_array_equal):
    for name in ("wide", "deep"):
        for i, part in enumerate(slices_of(together[name]["kernel"], axis)):
            check(part, np.asarray(apart[name][str(i)]["kernel"]))
    check(np.asarray(together["alone"]["kernel"]), np.asarray(apart["alone"]["kernel"]))
