"""A run of seconds, for the tests of the experiments."""

from typing import Any

from experiments.configs import common


def small_run(data_dir, name="magnitude_attention", **values) -> Any:
    config: Any = common.digits_mlp(name, **values)
    config.data.data_dir, config.test_split = data_dir, "test[:100]"
    config.model.widths, config.steps, config.batch_size = (10,), 40, 16
    config.log_every = config.checkpoint_every = config.evaluate_every = 10
    return config
