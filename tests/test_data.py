"""The datasets: the same images by seed, splits, exact order, and what TFDS's names give."""

import itertools
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from experiments import data, datasets, glyphs


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("data")


def load(folder, name, split, **options):
    return data.load({"name": name, "data_dir": str(folder), **options}, split)


SMALL = {"train": 60, "validation": 10, "test": 20}


def test_digits_are_the_scanned_ones_split_once(folder):
    train, test = load(folder, "digits", "train"), load(folder, "digits", "test")
    assert train.images.shape == (1347, 8, 8, 1) and test.images.shape == (450, 8, 8, 1)
    assert train.images.dtype == np.uint8 and train.classes == 10
    counts = np.bincount(train.labels) + np.bincount(test.labels)
    np.testing.assert_array_equal(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])


def test_splits_slice_as_in_tfds(folder):
    train = load(folder, "digits", "train")
    first, rest = load(folder, "digits", "train[:10%]"), load(folder, "digits", "train[10%:]")
    np.testing.assert_array_equal(np.concatenate([first.labels, rest.labels]), train.labels)


def test_glyphs_come_back_from_the_files_as_they_were_rendered(folder):
    found = load(folder, "glyphs", "test", **SMALL)
    assert found.images.shape == (20, 16, 16, 1) and found.classes == 62
    rendered = {image.tobytes(): label for image, label in glyphs.render(20, stream=2)}
    assert rendered == {
        image.tobytes(): label for image, label in zip(found.images, found.labels, strict=True)
    }


@pytest.mark.parametrize("size", [16, 20, 32])
def test_glyphs_have_the_size_that_is_asked_for(size):
    images, labels = zip(*glyphs.render(3, size=size), strict=True)
    assert np.stack(images).shape == (3, size, size, 1) and max(labels) < 62


def test_glyphs_are_a_function_of_seed_and_stream():
    def images(**values):
        return np.stack([image for image, _ in glyphs.render(5, **values)])

    np.testing.assert_array_equal(images(seed=1, stream=2), images(seed=1, stream=2))
    for other in ({"seed": 2, "stream": 2}, {"seed": 1, "stream": 1}):
        assert (images(seed=1, stream=2) != images(**other)).mean() > 0.5


def test_difficulty_is_noise_and_jitter():
    def roughness(difficulty):
        images = np.stack([x for x, _ in glyphs.render(200, difficulty=difficulty)]).astype(float)
        return np.abs(images[:, :2, 1:] - images[:, :2, :-1]).mean()

    assert roughness(0.0) < 0.5 * roughness(1.0) < 0.5 * roughness(2.0)


def test_every_value_of_the_glyphs_names_another_folder():
    changed = [{"size": 32}, {"difficulty": 2.0}, {"seed": 1}, {"train": 1}, {"test": 1}]
    names = {datasets.GlyphsConfig(**values).name for values in [{}, *changed]}
    assert len(names) == 6


def numbered(count):
    images = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)
    return data.Dataset(images, np.arange(count, dtype=np.int32), count)


@given(
    count=st.integers(1, 40), batch=st.integers(1, 8), start=st.integers(0, 25), seed=st.integers(0)
)
def test_batches_go_on_exactly_where_they_stopped(count, batch, start, seed):
    batch = min(batch, count)
    dataset = numbered(count)
    whole = itertools.islice(dataset.batches(batch, seed=seed), start, start + 5)
    resumed = itertools.islice(dataset.batches(batch, seed=seed, start=start), 5)
    for expected, found in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(expected["label"], found["label"])
        np.testing.assert_array_equal(found["image"][:, 0, 0, 0], found["label"])


@given(count=st.integers(1, 40), batch=st.integers(1, 8))
def test_an_epoch_shows_an_image_at_most_once(count, batch):
    batch = min(batch, count)
    epoch = itertools.islice(numbered(count).batches(batch, seed=0), count // batch)
    seen = np.concatenate([found["label"] for found in epoch])
    assert len(seen) == count // batch * batch == len(set(seen.tolist()))


def test_epochs_and_seeds_differ_in_order():
    def first(seed, epoch):
        return next(numbered(64).batches(64, seed=seed, start=epoch))["label"].tolist()

    assert len({tuple(first(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_augmentation_resumes_exactly_and_only_shifts_and_mirrors():
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (8, 6, 6, 1), dtype=np.uint8)
    dataset = data.Dataset(images, np.arange(8, dtype=np.int32), 8)
    stream = dataset.batches(8, seed=3, augment=True)
    second = list(itertools.islice(stream, 2))[1]
    resumed = next(dataset.batches(8, seed=3, start=1, augment=True))
    np.testing.assert_array_equal(second["image"], resumed["image"])
    for image, label in zip(second["image"], second["label"], strict=True):
        assert set(image.ravel().tolist()) <= {0, *images[label].ravel().tolist()}
    assert (second["image"] != images[second["label"]]).any()


def test_a_batch_larger_than_the_dataset_is_an_error():
    with pytest.raises(ValueError, match="`batch_size` must be at most 4, got 5"):
        next(numbered(4).batches(5, seed=0))


@given(count=st.integers(1, 20), batch=st.integers(1, 8))
def test_whole_shows_every_image_once_in_one_shape(count, batch):
    found = list(numbered(count).whole(batch))
    assert {b["image"].shape[0] for b in found} == {batch}
    labels = np.concatenate([b["label"] for b in found])
    np.testing.assert_array_equal(labels[labels >= 0], np.arange(count))


def test_cifar_is_read_by_its_tfds_name():
    with tfds.testing.mock_data(num_examples=12):
        found = data.load({"name": "cifar10"}, "train[:50%]")
    assert found.images.shape[1:] == (32, 32, 3) and found.classes == 10
    assert next(found.batches(4, seed=0, augment=True))["image"].shape == (4, 32, 32, 3)


def test_a_dataset_that_is_not_there_says_how_to_get_it(folder):
    with pytest.raises(ValueError, match=r"got 'cifar10': where TensorFlow is installed, run"):
        load(folder, "cifar10", "train")


def test_a_split_that_is_not_there_is_named(folder):
    with pytest.raises(ValueError, match="trian"):
        load(folder, "digits", "trian")
