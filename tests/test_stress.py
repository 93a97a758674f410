"""A run that is killed again and again ends in the bits of one that was left alone."""

import pathlib

import pytest

from experiments import stress

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_five_kills_at_random_moments(tmp_path: pathlib.Path, data_dir: str) -> None:
    values = {"data.data_dir": data_dir, "steps": 400, "test_split": "test[:100]"}
    stress.stress(5, tmp_path / "runs", seed=1, **values)


def test_another_end_is_told(tmp_path: pathlib.Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        for log in stress.LOGS:
            (tmp_path / name / log).write_text(name if log == stress.LOGS[1] else "")
    with pytest.raises(RuntimeError, match=r"must write the same layers\.jsonl"):
        stress._compared(tmp_path / "one", tmp_path / "other")
