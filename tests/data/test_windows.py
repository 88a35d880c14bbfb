"""Random windows and flips against NumPy, and their law; maps that are cut like their images."""

import signal
import zlib

import numpy as np
import pytest
import tensorflow as tf
from helpers import gradient_penalties
from helpers.gradient_penalties import MapsApart, augmented, network, pictures, trained
from helpers.processes import Child
from scipy.stats import binomtest, chi2_contingency, chisquare

from tfrobust.data import Arrays, Share, as_stream
from tfrobust.data.windows import cut_windows, draw_windows
from tfrobust.errors import InputError
from tfrobust.objectives import CrossEntropy
from tfrobust.training import SettingsChangedError, checkpoints, evaluate


def whole(batches):
    batches = list(batches.as_numpy_iterator())
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def tensors(count=40, shape=(7, 5, 3), seed=0):
    """Images without zeros, maps of another number of channels, and the number of each example."""
    rng = np.random.default_rng(seed)
    return {
        "images": rng.uniform(0.1, 1, (count, *shape)).astype("float32"),
        "labels": rng.integers(0, 3, count),
        "targets": rng.normal(size=(count, *shape[:2], 2)),
        "number": np.arange(count),
    }


def one_epoch(arrays, batch_size=10, epoch=0, seed=1, share=None, **options):
    stream = Arrays(arrays, 3, augmentation="crop4_flip")
    share = share or Share.of(batch_size)
    return whole(stream.training_batches(batch_size, share, seed=seed, epoch=epoch, **options))


def numpy_window(image, row, column, flipped):
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    window = padded[row : row + image.shape[0], column : column + image.shape[1]]
    return window[:, ::-1] if flipped else window


def test_windows_are_those_of_numpy():
    """Every corner, flipped or not, of an image that is not square."""
    image = np.random.default_rng(0).normal(size=(7, 5, 3)).astype("float32")
    places = [(r, c, f) for r in range(9) for c in range(9) for f in (False, True)]
    corners = tf.constant([place[:2] for place in places])
    flipped = tf.constant([place[2] for place in places])
    found = cut_windows(tf.constant(np.stack([image] * len(places))), corners, flipped)
    for window, place in zip(found.numpy(), places, strict=True):
        np.testing.assert_array_equal(window, numpy_window(image, *place))


def test_batches_hold_windows_of_images_and_maps_and_nothing_else_changes():
    arrays = tensors()
    batch = one_epoch(arrays)
    seen = set()
    assert sorted(batch["number"]) == list(range(40))
    for k, number in enumerate(batch["number"]):
        assert batch["labels"][k] == arrays["labels"][number]
        image, maps = arrays["images"][number], arrays["targets"][number].astype("float32")
        [place] = [
            (r, c, f)
            for r in range(9)
            for c in range(9)
            for f in (False, True)
            if np.array_equal(numpy_window(image, r, c, f), batch["images"][k])
            and np.array_equal(numpy_window(maps, r, c, f), batch["targets"][k])
        ]
        seen.add(place)
    assert len(seen) > 25
    assert batch["images"].dtype == batch["targets"].dtype == np.float32


def read_off(batches):
    """Rows and columns of windows in 0..8 and flips, from images whose channels tell the place."""
    rows, columns = (batches["images"][:, 5, 4:8, channel] for channel in (0, 1))
    flipped = columns[:, 1] < columns[:, 0]
    first = np.where(flipped, columns[:, 3], columns[:, 0])
    assert (abs(np.diff(columns, axis=1)) == 1).all()
    return rows[:, 0].astype(int) - 1 - 5 + 4, first.astype(int) - 1 - 4 + 4, flipped


def test_windows_are_uniform_and_half_of_them_flipped():
    count = 4000
    places = np.stack(np.mgrid[1:13, 1:13], axis=-1).astype("float32")
    arrays = {"images": np.broadcast_to(places, (count, 12, 12, 2)), "labels": np.zeros(count, int)}
    epochs = [read_off(one_epoch(arrays, 1000, epoch=epoch)) for epoch in range(2)]
    for rows, columns, flipped in epochs:
        cells = np.zeros((9, 9, 2))
        np.add.at(cells, (rows, columns, flipped.astype(int)), 1)
        assert cells.sum() == count
        assert chisquare(cells.sum(axis=(1, 2))).pvalue > 1e-3
        assert chisquare(cells.sum(axis=(0, 2))).pvalue > 1e-3
        assert chisquare(cells.ravel()).pvalue > 1e-3  # independent of one another
        assert binomtest(int(flipped.sum()), count).pvalue > 1e-3
    # and of the epoch before
    for one, other in zip(*epochs, strict=True):
        assert chi2_contingency(np.histogram2d(one, other, (2, 2))[0]).pvalue > 1e-3


def test_draws_depend_on_seed_and_epoch_only():
    one = draw_windows(50, seed=3, epoch=4)
    for again, differs in (((3, 4), False), ((3, 5), True), ((4, 4), True), ((4, 3), True)):
        other = draw_windows(50, seed=again[0], epoch=again[1])
        assert (one[0] != other[0]).any() == (one[1] != other[1]).any() == differs
    assert one[0].dtype == np.int32
    assert one[0].min() >= 0
    assert one[0].max() <= 8
    arrays = tensors(40)
    for left, right in zip(*(one_epoch(arrays).values() for _ in range(2)), strict=True):
        np.testing.assert_array_equal(left, right)
    assert (one_epoch(arrays)["images"] != one_epoch(arrays, seed=2)["images"]).any()


def test_devices_workers_and_resumed_epochs_see_the_same_windows():
    arrays = tensors(44)
    expected = one_epoch(arrays, 12, epoch=2)
    parts = [
        one_epoch(arrays, 12, epoch=2, share=Share.of(12, replicas=4, workers=2, worker=worker))
        for worker in range(2)
    ]
    rest = one_epoch(arrays, 12, epoch=2, first_step=2)
    for name, array in expected.items():
        joined = np.concatenate([part[name].reshape(3, 6, -1) for part in parts], axis=1)
        np.testing.assert_array_equal(joined.reshape(array.shape), array)
        np.testing.assert_array_equal(rest[name], array[24:])


@pytest.mark.parametrize("dtype", ["uint8", "bool", "float64"])
def test_a_map_equal_to_its_image_stays_equal(dtype):
    arrays = tensors()
    arrays["images"] = (arrays["images"] * 200).astype(dtype)
    arrays["targets"] = arrays["images"]
    for epoch in range(4):
        batch = one_epoch(arrays, epoch=epoch)
        np.testing.assert_array_equal(batch["images"], batch["targets"])
        assert (batch["images"] == 0).any()


def test_a_map_equal_to_its_image_stays_equal_in_training():
    objective = CrossEntropy() + MapsApart()
    for record in trained(network(), augmented(targets=pictures()[0]), objective, epochs=3):
        assert record["difference"] == 0
        assert record["padding"] == pytest.approx(1 - (1 - 20 / 9 / 6) ** 2, abs=0.08)
    [record] = trained(network(), augmented(), objective, epochs=1)
    assert record["difference"] > 0.1


def test_a_killed_run_on_two_devices_ends_as_one_that_is_not(tmp_path):
    """Weights and records bit for bit; an epoch has 4 steps, a checkpoint comes every 3."""
    folder = tmp_path / "killed"
    for moment, step, status in (("after", 6, -signal.SIGKILL), ("never", 0, 0)):
        child = Child(gradient_penalties.killed_or_whole, folder, moment, step)
        assert child.wait() == status, child.printed()[-3000:]
        if status:
            assert checkpoints.read(checkpoints.newest(folder))[0]["progress"]["steps"] == 2
    with np.load(tmp_path / "whole.npz") as one, np.load(tmp_path / "resumed.npz") as other:
        assert one.files == other.files
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])
        records = str(one[one.files[-1]])
    assert records.count('"difference": 0.0') == 2


def test_evaluation_sees_whole_images():
    arrays = tensors(23)
    stream = Arrays(arrays, 3, augmentation="crop4_flip")
    found = [whole(stream.evaluation_batches(5, workers=2, worker=k)) for k in range(2)]
    for k, part in enumerate(found):
        np.testing.assert_array_equal(part["images"], arrays["images"][k::2])
        np.testing.assert_array_equal(part["targets"], arrays["targets"][k::2].astype("float32"))
    model, (images, labels, _) = network(), pictures()
    assert evaluate(model, augmented()) == evaluate(model, images, labels)


def test_the_fingerprint():
    """Of plain data it is the checksum of names, types, shapes and contents that it always was."""
    images, labels, maps = pictures()
    arrays = {"images": images, "labels": labels.astype("int32")}
    expected = 0
    for name in ("images", "labels"):
        array = arrays[name]
        expected = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), expected)
        expected = zlib.crc32(array.tobytes(), expected)
    assert Arrays(arrays, 3).fingerprint() == expected
    assert as_stream(network(), (images, labels), "data").fingerprint() == expected
    different = [
        Arrays(each, 3, augmentation=augmentation).fingerprint()
        for each in (arrays, {**arrays, "targets": maps}, {**arrays, "targets": -maps})
        for augmentation in (None, "crop4_flip")
    ]
    assert len(set(different)) == 6


def test_a_folder_of_training_without_augmentation_is_not_resumed_with_it(tmp_path):
    images, labels, maps = pictures()
    plain = Arrays({"images": images, "labels": labels, "targets": maps}, 3)
    trained(network(), plain, CrossEntropy(), epochs=1, folder=tmp_path)
    with pytest.raises(SettingsChangedError, match="another data"):
        trained(network(), augmented(), CrossEntropy(), folder=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.ones((40, 7, 5))}, r"cuts images and targets .*got images of shape \(40, 7"),
        ({"images": np.ones((40, 35))}, "got images of shape"),
        ({"targets": np.ones((40, 7, 5))}, "got targets of shape"),
        ({"targets": np.ones((40, 5, 7, 3))}, r"got targets of shape \(40, 5, 7, 3\)"),
        ({"targets": np.ones((39, 7, 5, 3))}, "targets must have one row per image, 40"),
        ({"targets": np.full((40, 7, 5, 3), np.nan)}, "targets has NaN or infinite values"),
        ({"labels": np.full(40, 3)}, "labels must lie in 0..2 for 3 classes"),
        ({"labels": np.full(40, -1)}, "labels must lie in 0..2"),
        ({"labels": np.full(40, 0.5)}, "labels must be whole numbers"),
        ({"labels": np.eye(3)[np.zeros(40, int)]}, r"labels must have shape \(40,\).*one-hot"),
    ],
)
def test_bad_arrays(changes, message):
    with pytest.raises(InputError, match=message):
        Arrays({**tensors(), **changes}, 3, augmentation="crop4_flip")


def test_an_unknown_augmentation():
    with pytest.raises(InputError, match=r'must be "crop4_flip" or None, got .flip.'):
        Arrays(tensors(), 3, augmentation="flip")


def test_other_names_are_not_cut_and_classes_may_have_no_examples():
    arrays = {**tensors(), "labels": np.ones(40, int), "aims": np.ones((40, 7, 5, 3))}
    batch = one_epoch(arrays)
    assert (batch["aims"] == 1).all()
    assert (batch["labels"] == 1).all()
    del arrays["targets"]
    assert (one_epoch(arrays)["images"] == 0).any()
