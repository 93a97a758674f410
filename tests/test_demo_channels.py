"""The demonstration of channels, on a few random images: every stage runs, and sizes are right."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxprune
from experiments import bench_cut, data, demo_channels


@pytest.mark.usefixtures("standard_promotion")
def test_half_the_channels_go_and_the_file_is_loaded_again(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (256, 16, 16, 1)).astype(np.uint8)
    toy = data.Dataset(images, rng.integers(0, 62, 256).astype(np.int32), 62)
    monkeypatch.setattr(data, "load", lambda config, split: toy)
    found = demo_channels.demo(tmp_path, steps=16)
    printed = capsys.readouterr().out
    assert "Loaded in a fresh process" in printed
    assert "| cut, fine-tuned | " in printed
    assert json.loads((tmp_path / "channels.json").read_text()) == found
    assert (tmp_path / "channels.png").stat().st_size > 10_000
    dense, masked, cut = (found[name] for name in ("dense", "masked", "cut"))
    assert dense["parameters"] == masked["parameters"] == 66_590
    stem, width = 8, 20
    kernels = 16 * stem + 9 * stem * width + 4 * 9 * width**2 + width * 62
    assert cut["parameters"] == kernels + 2 * stem + 5 * 2 * width + 62
    assert cut["accuracy"] == masked["accuracy"]
    assert cut["kB of the sparse file"] <= masked["kB of the sparse file"]
    plan = jaxprune.load_sparse(tmp_path / "cut.safetensors")
    assert plan["params"]["conv_stem"]["kernel"].shape == (4, 4, 1, stem)


def test_the_networks_that_are_timed_can_be_cut() -> None:
    fn, params, also, x = bench_cut.mlp()
    net = jaxprune.trace(fn, params, x, also=also)
    assert [group.size for group in net.groups] == [1024] * 3
    assert bench_cut._operations(net) == 2 * 64 * (784 * 1024 + 2 * 1024**2 + 1024 * 10)
