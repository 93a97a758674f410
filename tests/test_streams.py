"""Images that are read while a network trains: exact order, resumption, crops, the last batch."""

import io
import itertools
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import flags
from PIL import Image

from experiments import bench_input, data, streams

ROOT = pathlib.Path(__file__).parents[1]


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, quality=95)
    return file.getvalue()


def source(count: int, size: tuple[int, int] = (12, 16)) -> list[dict]:
    """Images of one colour each, their number; and their labels."""
    return [
        {"image": encoded(np.full((*size, 3), number, np.uint8)), "label": number}
        for number in range(count)
    ]


def numbers(batch: streams.Batch) -> list[int]:
    assert (batch["image"] == batch["image"][:, :1, :1, :1]).all()
    return batch["image"][:, 0, 0, 0].tolist()


@pytest.mark.parametrize("augment", [True, False])
def test_batches_go_on_exactly_where_they_stopped(augment):
    stream = streams.Stream(source(7), 7, size=8)
    whole = list(itertools.islice(stream.batches(3, seed=1, augment=augment), 9))
    rest = stream.batches(3, seed=1, start=5, augment=augment)
    for expected, found in zip(whole[5:], rest, strict=False):
        np.testing.assert_array_equal(expected["image"], found["image"])
        assert numbers(found) == found["label"].tolist() and found["image"].shape == (3, 8, 8, 3)
    shown = np.concatenate([b["label"] for b in whole])[:21].reshape(3, 7)
    assert all(sorted(epoch) == list(range(7)) for epoch in shown.tolist())
    assert len({tuple(epoch) for epoch in shown.tolist()}) > 1  # epochs differ in order
    other = next(stream.batches(3, seed=2, augment=augment))
    assert other["label"].tolist() != whole[0]["label"].tolist()


def test_worker_processes_give_what_threads_give():
    flags.FLAGS.mark_as_parsed()  # as `app.run` does; the workers read flags of their own
    few = source(6)
    one, other = (
        streams.Stream(few, 6, size=4, workers=workers).batches(2, seed=0, augment=True)
        for workers in (0, 2)
    )
    for a, b, _ in zip(one, other, range(5), strict=False):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 16])
def test_whole_shows_every_image_once_on_all_processes_together(monkeypatch, count, processes):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    seen, lengths = [], set()
    stream = streams.Stream(source(count), count, size=4)
    memory = data.Dataset(np.zeros((count, 4, 4, 3), np.uint8), np.arange(count), count)
    for images in (stream, memory):
        for rank in range(processes):
            monkeypatch.setattr(jax, "process_index", lambda rank=rank: rank)
            found = list(images.whole(4))
            lengths.add(len(found))
            assert all(b["image"].shape == (4 // processes, 4, 4, 3) for b in found)
            seen += [label for b in found for label in b["label"].tolist() if label >= 0]
    assert sorted(seen) == sorted([*range(count), *range(count)])
    assert len(lengths) == 1


def shown(batches):
    """The images of several batches and their labels, in any order."""
    pairs = [pair for b in batches for pair in zip(b["label"], b["image"], strict=True)]
    return sorted((int(label), image.tobytes()) for label, image in pairs)


@pytest.mark.parametrize("augment", [True, False])
def test_a_batch_is_the_same_images_on_any_number_of_processes(monkeypatch, augment):
    """And the same crops: each image draws its own, wherever it is read."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 24, 24, 3), dtype=np.uint8)
    stream = streams.Stream([{"image": x, "label": k} for k, x in enumerate(images)], 8, size=4)
    found = {}
    for processes in (1, 2, 4):
        monkeypatch.setattr(jax, "process_count", lambda processes=processes: processes)
        parts = []
        for rank in range(processes):
            monkeypatch.setattr(jax, "process_index", lambda rank=rank: rank)
            read = stream.batches(4, seed=0, augment=augment)
            parts.append(list(itertools.islice(read, 3)))
            assert all(len(batch["label"]) == 4 // processes for batch in parts[-1])
        found[processes] = [
            sorted(
                (int(k), x.tobytes())
                for b in each
                for k, x in zip(b["label"], b["image"], strict=True)
            )
            for each in zip(*parts, strict=True)
        ]
    assert found[1] == found[2] == found[4]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="`batch_size` must be a multiple of the 2 processes"):
        next(stream.batches(3, seed=0))


WORKERS = """
import os, signal, sys
import numpy as np
from absl import app
from experiments import streams

def main(argv):
    os.setpgrp()
    signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
    source = [{"image": np.zeros((8, 8, 3), np.uint8), "label": n} for n in range(16)]
    read = streams.Stream(source, 16, size=4, workers=2).batches(4, seed=0)
    next(read), next(read)  # one of each worker
    os.killpg(os.getpgrp(), signal.SIGTERM)
    print(sum(len(next(read)["label"]) for _ in range(20)), flush=True)

if __name__ == "__main__":
    app.run(main)
"""


def test_workers_outlive_a_sigterm_that_all_processes_get_and_end_with_the_run(tmp_path):
    """As clusters send it: the run saves, and needs its images until then."""
    program = tmp_path / "program.py"  # worker processes import it
    program.write_text(WORKERS)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(program)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["asked", "80"]


def test_a_batch_larger_than_the_split_is_an_error():
    with pytest.raises(ValueError, match="`batch_size` must be at most 2, got 3"):
        next(streams.Stream(source(2), 2).batches(3, seed=0))


def test_evaluation_sees_the_central_square_but_an_eighth():
    ramp = np.broadcast_to(np.arange(160, dtype=np.uint8)[None, :, None], (80, 160, 3))
    found = streams.central_box({"image": np.array(ramp), "label": 1}, 70)["image"]
    np.testing.assert_array_equal(found[0, :, 0], np.arange(45, 115))


def test_boxes_lie_within_and_have_the_areas_and_ratios_they_should():
    places = np.stack(np.meshgrid(np.arange(200), np.arange(100), indexing="xy"), -1)
    image = np.concatenate([places, np.zeros((100, 200, 1))], -1).astype(np.uint8)
    rng, areas, mirrored = np.random.default_rng(0), [], 0
    for _ in range(200):
        found = streams.random_box({"image": image, "label": 0}, rng, 50)["image"].astype(float)
        across = (found[25, -1, 0] - found[25, 0, 0]) * 50 / 49
        down = (found[-1, 25, 1] - found[0, 25, 1]) * 50 / 49
        mirrored += across < 0
        areas.append(abs(across) * down / 20_000)
        assert 0.7 < abs(across) / down < 1.42
    assert 0.06 < min(areas) < 0.12 and 0.45 < max(areas) <= 0.68  # 4:3 of 100 rows is 133 columns
    assert 70 < mirrored < 130


def test_jpegs_are_decoded_no_finer_than_needed_to_nearly_the_same_pixels():
    y, x = np.mgrid[0:256, 0:384] / 256
    image = np.stack([x * 150, y * 250, 128 + 100 * np.sin(9 * x + 5 * y)], -1).astype(np.uint8)
    for size in (32, 200):
        given = ({"image": x, "label": 0} for x in (encoded(image, "JPEG"), image))
        raw, plain = (streams.central_box(each, size)["image"].astype(int) for each in given)
        np.testing.assert_allclose(raw, plain, atol=9)


def test_gray_images_and_alpha_become_three_colours():
    for shape in ((8, 8), (8, 8, 4)):
        image = np.full(shape, 7, np.uint8)
        found = streams.central_box({"image": encoded(image), "label": 0}, 4)["image"]
        assert found.shape == (4, 4, 3) and (found == 7).all()


def test_imagenet_is_read_by_its_tfds_name(monkeypatch):
    monkeypatch.setattr(data, "ENCODED", None)  # the mock cannot encode without TensorFlow
    with tfds.testing.mock_data(num_examples=6):
        found = data.opened({"name": "imagenet2012", "crop": 32}, "train")
        batch = next(found.batches(4, seed=0, augment=True))
    assert found.classes == 1000 and len(found) == 6
    assert batch["image"].shape == (4, 32, 32, 3) and batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32


def test_the_pipeline_is_measured_beside_decoding_alone(monkeypatch):
    for name, number in (("_IMAGES", 4), ("_BATCH", 4), ("_ROUNDS", 1)):
        monkeypatch.setattr(bench_input, name, number)
    rows = bench_input.input_rows()
    assert [what.rsplit(", ")[-1] for what, *_ in rows] == [
        "whole pipeline to 224x224",
        "decoded alone",
    ]
    assert all(float(rate.split()[0]) > 0 for _, rate, _ in rows)
