"""The stream: the same batches for any number of workers, corrupt images skipped, little memory."""

import gc
import json
import os
import shutil
import threading
import warnings
import weakref

import numpy as np
import pytest
import tensorflow as tf
from helpers import small_imagenet
from helpers.small_imagenet import COUNT, WNIDS, load, whole
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrobust import imagenet
from tfrobust.data import DataNotFoundError
from tfrobust.data.crops import centre_crop, random_crop
from tfrobust.data.imagenet import stream as stream_module
from tfrobust.data.images import TooManyCorruptImagesError, decode
from tfrobust.data.stream import Share


@pytest.fixture
def broken(tree, tmp_path):
    """A copy of the tree and a function that cuts the files it is given."""
    root = tmp_path / "broken"
    shutil.copytree(tree, root)
    files = sorted(root.rglob("*.JPEG"))

    def cut(*rows):
        for row in rows:
            files[row].write_bytes(files[row].read_bytes()[:-60])
        return [str(files[row]) for row in sorted(rows)]

    return root, cut


def epoch_of(stream, batch_size=4, workers=1, worker=0, replicas=None, seed=3, epoch=1):
    """(steps, rows of the worker, ...) images and labels, replicas put together again."""
    share = Share.of(batch_size, replicas or workers, workers, worker)
    steps = stream.training_batches(batch_size, share, seed=seed, epoch=epoch)
    batches = list(steps.as_numpy_iterator())
    assert all(len(tensor) == share.rows for batch in batches for tensor in batch.values())
    images = np.concatenate([batch["images"] for batch in batches])
    labels = np.concatenate([batch["labels"] for batch in batches])
    wide = share.stop - share.start
    return images.reshape(-1, wide, *images.shape[1:]), labels.reshape(-1, wide)


def test_an_epoch_resumed_at_a_step_has_the_same_batches(tree):
    stream = load(tree)
    images, labels = epoch_of(stream)
    for first_step in (1, 4, 5):
        rest = stream.training_batches(4, Share.of(4), seed=3, epoch=1, first_step=first_step)
        batches = list(rest.as_numpy_iterator())
        assert len(batches) == 5 - first_step
        for batch, x, y in zip(batches, images[first_step:], labels[first_step:], strict=True):
            np.testing.assert_array_equal(batch["images"], x)
            np.testing.assert_array_equal(batch["labels"], y)


def test_settings_are_checked(tree):
    with pytest.raises(ValueError, match=r"limit must lie in 1\.\.23, got 24"):
        load(tree, limit=24)
    with pytest.raises(ValueError, match=r"crop of 16x16 does not fit .* to 15"):
        load(tree, validation_side=15)
    with pytest.raises(ValueError, match=r"crop of 16x16 does not fit .* to 12"):
        load(tree, shorter_side=(12, 30))
    with pytest.raises(ValueError, match="from 30 down to 20"):
        load(tree, shorter_side=(30, 20))
    with pytest.raises(ValueError, match="max_corrupt must be at least 0"):
        load(tree, max_corrupt=-1)
    with pytest.raises(ValueError, match="preprocess has no attribute value_range"):
        load(tree, preprocess=lambda images: images / 255)
    with pytest.raises(ValueError, match=r"count must lie in 1\.\.23, got 0"):
        load(tree).take(0)


@pytest.mark.parametrize("source", ["tree", "records", "prepared"])
def test_an_epoch_of_training_shows_each_image_once(source, made, request):
    """Which image it is, is told by an augmentation that marks it instead of changing it."""
    stream = load(request.getfixturevalue(source), augment=fingerprint_image)
    images, labels = epoch_of(stream, batch_size=1)
    found = sorted(zip(images[:, 0, 0, 0, 0].tolist(), labels[:, 0].tolist(), strict=True))
    expected = sorted(
        (float(decode(encoded).astype(np.float64).mean().astype(np.float32)), WNIDS.index(wnid))
        for wnid, _, encoded in made
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def fingerprint_image(image, seed):
    return tf.fill((16, 16, 3), tf.cast(tf.reduce_mean(tf.cast(image, tf.float64)), tf.float32))


def test_training_images_are_random_crops_of_the_stated_seed(tree, made):
    """Element e of the order uses the seed (seed, epoch) folded with e, and nothing else."""
    stream = load(tree)
    images, labels = epoch_of(stream, batch_size=5)
    pair = np.random.SeedSequence([3, 1]).generate_state(2).view(np.int32)
    marked, _ = epoch_of(load(tree, augment=fingerprint_image), batch_size=5)
    means = {round(float(decode(encoded).mean()), 3): decode(encoded) for _, _, encoded in made}
    for position, (image, mean) in enumerate(
        zip(images.reshape(-1, 16, 16, 3), marked[..., 0, 0, 0].ravel(), strict=True)
    ):
        pixels = means[round(float(mean), 3)]
        seed = tf.random.fold_in(pair, tf.constant(position, tf.int64))
        expected = random_crop(pixels, seed, (16, 16), (18, 24))
        np.testing.assert_allclose(image, expected, atol=1e-3)
    assert images.shape == (4, 5, 16, 16, 3)
    assert labels.shape == (4, 5)


# --- order and shares ------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["tree", "records"])
def test_an_epoch_depends_on_seed_and_epoch_only(source, request):
    root = request.getfixturevalue(source)
    one, other = epoch_of(load(root)), epoch_of(load(root))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])
    for change in ({"seed": 4}, {"epoch": 2}):
        assert not np.array_equal(one[0], epoch_of(load(root), **change)[0])


@pytest.mark.parametrize("source", ["tree", "records"])
@pytest.mark.parametrize(("workers", "replicas"), [(1, 2), (2, 4)])
def test_workers_cut_the_same_global_batches(source, workers, replicas, request):
    root = request.getfixturevalue(source)
    images, labels = epoch_of(load(root), batch_size=8)
    parts = [
        epoch_of(load(root), batch_size=8, workers=workers, worker=worker, replicas=replicas)
        for worker in range(workers)
    ]
    np.testing.assert_array_equal(images, np.concatenate([part for part, _ in parts], 1))
    np.testing.assert_array_equal(labels, np.concatenate([part for _, part in parts], 1))


@settings(max_examples=15)
@given(
    workers=st.sampled_from([1, 2, 3, 4]),
    each=st.integers(1, 3),
    examples=st.integers(1, COUNT),
    seed=st.integers(0, 2**63 - 1),
)
def test_shares_partition_the_order(tree, workers, each, examples, seed):
    """Which images a worker decodes; no image is decoded twice or for another worker."""
    batch_size = workers * each
    stream = load(tree, limit=examples, augment=fingerprint_image)
    order = stream._order(seed, 0)
    assert sorted(order) == sorted(stream._rows)
    seen = []
    for worker in range(workers):
        share = Share.of(batch_size, workers, workers, worker)
        decoded = []
        stream._example = lambda index: (
            decoded.append(index) or type(stream)._example(stream, index)
        )
        steps = list(stream.training_batches(batch_size, share, seed=seed, epoch=0))
        assert len(steps) == examples // batch_size
        seen.append(sorted(decoded))
    table = order[: examples // batch_size * batch_size].reshape(-1, workers, each)
    assert seen == [sorted(table[:, worker].ravel()) for worker in range(workers)]


def test_records_are_shuffled_within_groups_of_shards(made, tmp_path, monkeypatch):
    monkeypatch.setattr(stream_module, "_SHARDS_AT_ONCE", 2)
    small_imagenet.write_tfrecords(tmp_path, made, shards=6)
    stream = load(tmp_path)
    shard_of = np.repeat(np.arange(6), [len(part) for part in np.array_split(range(COUNT), 6)])
    firsts, mixed = set(), 0
    for epoch in range(30):
        order = stream._order(0, epoch)
        assert sorted(order) == list(range(COUNT))
        visited = shard_of[order]
        together = [size for size in range(COUNT) if len(set(visited[:size])) <= 2][-1]
        assert not set(visited[:together]) & set(visited[together:])
        mixed += np.count_nonzero(np.diff(visited[:together])) > 1
        firsts.add(frozenset(visited[:together]))
    assert len(firsts) > 8  # of the 15 pairs of shards
    assert mixed > 25  # two shards of four in 2 of 70 orders are not


def test_workers_share_evaluation(tree):
    stream = load(tree)
    images, labels = whole(stream)
    parts = [list(stream.evaluation_batches(4, workers=3, worker=worker)) for worker in range(3)]
    for worker, part in enumerate(parts):
        for name, expected in (("images", images), ("labels", labels)):
            found = np.concatenate([batch[name] for batch in part])
            np.testing.assert_array_equal(found, expected[worker::3])


def test_a_limit_takes_a_fixed_choice_from_all_classes(tree):
    everything, part = load(tree), load(tree, limit=9)
    assert len(part) == part.provenance.examples == 9
    names = part.take(9).names
    assert names == load(tree, limit=9).take(9).names
    assert set(names) < set(everything.take(COUNT).names)
    assert len({name.split("/")[0] for name in names}) > 1
    assert part.fingerprint() != everything.fingerprint()
    images, _ = epoch_of(part, batch_size=4)
    assert len(images) == 2


def test_take_draws_with_a_seed(tree):
    stream = load(tree)
    first, drawn = stream.take(6), stream.take(6, seed=1)
    assert len(first) == 6
    assert first.names == stream.take(COUNT).names[:6]
    assert drawn.names == stream.take(6, seed=1).names
    assert drawn.names != stream.take(6, seed=2).names
    assert len(set(drawn.names)) == 6
    everything = stream.take(COUNT)
    rows = [everything.names.index(name) for name in drawn.names]
    np.testing.assert_array_equal(drawn.images, everything.images[rows])
    np.testing.assert_array_equal(drawn.labels, everything.labels[rows])


# --- preprocessing and fingerprint -----------------------------------------------------------


class Caffe:
    value_range = (-123.68, 151.061)
    name = "caffe"

    def __call__(self, images):
        return images[..., ::-1] - tf.constant([103.939, 116.779, 123.68])


def test_preprocessing_comes_last(tree):
    plain, caffe = load(tree), load(tree, preprocess=Caffe())
    assert caffe.value_range == Caffe.value_range
    mean = np.array([103.939, 116.779, 123.68], np.float32)
    for before, after in (
        (whole(plain)[0], whole(caffe)[0]),
        (epoch_of(plain)[0], epoch_of(caffe)[0]),
        (plain.take(5).images, caffe.take(5).images),
    ):
        np.testing.assert_allclose(after, before[..., ::-1] - mean, atol=1e-4)
    assert "caffe" in caffe.provenance.processing


def test_preprocessing_may_change_the_shape(tree):
    stream = load(
        tree,
        preprocess=lambda images: tf.reduce_mean(images, -1, keepdims=True) / 255,
        value_range=(0, 1),
    )
    assert stream.input_shape == (16, 16, 1)
    assert whole(stream)[0].shape == (COUNT, 16, 16, 1)
    assert whole(stream)[0].max() <= 1


def test_the_fingerprint_is_plain_and_tells_settings_apart(tree, records, broken):
    stream = load(tree)
    assert json.loads(json.dumps(stream.fingerprint())) == stream.fingerprint()
    assert load(tree).fingerprint() == stream.fingerprint()
    others = [
        load(records),
        load(tree, size=(16, 17)),
        load(tree, shorter_side=(18, 25)),
        load(tree, validation_side=19),
        load(tree, augment=fingerprint_image),
        load(tree, preprocess=Caffe()),
        load(tree, preprocess=lambda images: images * 2, value_range=(0, 1)),
        load(tree, preprocess=lambda images: images * 3, value_range=(0, 1)),
        load(tree, limit=22),
    ]
    root, cut = broken
    assert load(root).fingerprint() == stream.fingerprint()  # moved, not changed
    cut(0)
    others.append(load(root))
    told = [json.dumps(other.fingerprint()) for other in [stream, *others]]
    assert len(set(told)) == len(told)


# --- corrupt images --------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_next_good_image_stands_in_for_a_corrupt_one(tree, broken, workers):
    """Same number of steps; only the rows of corrupt images differ from those without."""
    root, cut = broken
    good = load(tree, augment=fingerprint_image)
    order = good._order(3, 1)
    bad = [order[5], order[6], order[14]]
    cut(*bad)
    images, labels = epoch_of(good)
    images, labels = images.reshape(20, 16, 16, 3).copy(), labels.reshape(20).copy()
    for place, stand_in in ((5, 7), (6, 7), (14, 15)):
        images[place], labels[place] = images[stand_in], labels[stand_in]
    for worker in range(workers):
        stream = load(root, augment=fingerprint_image)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found, classes = epoch_of(stream, workers=workers, worker=worker)
        rows = slice(worker * 4 // workers, (worker + 1) * 4 // workers)
        np.testing.assert_array_equal(found, images.reshape(5, 4, 16, 16, 3)[:, rows])
        np.testing.assert_array_equal(classes, labels.reshape(5, 4)[:, rows])
        told = [str(one.message) for one in caught if "corrupt" in str(one.message)]
        assert len(told) == len(stream.skipped)
        assert set(stream.skipped) <= {str(path) for path in sorted(root.rglob("*.JPEG"))}
        if workers == 1:
            assert len(stream.skipped) == 3


def test_the_epoch_goes_round_at_its_end(tree, broken):
    root, cut = broken
    order = load(tree)._order(3, 1)
    cut(order[21], order[22])
    stream = load(root, augment=fingerprint_image)
    with pytest.warns(UserWarning, match="corrupt and skipped"):
        images, _ = epoch_of(stream, batch_size=1)
    assert len(images) == COUNT
    np.testing.assert_array_equal(images[21], images[0])
    np.testing.assert_array_equal(images[22], images[0])


@pytest.mark.parametrize("workers", [1, 3])
def test_evaluation_leaves_corrupt_images_out(tree, broken, workers):
    root, cut = broken
    names = cut(2, 11)
    stream = load(root)
    with pytest.warns(UserWarning, match="corrupt and skipped"):
        images, labels = whole(stream, workers)
    assert stream.skipped == tuple(names)
    everything = load(tree).take(COUNT)
    kept = np.setdiff1d(np.arange(COUNT), [2, 11])
    rows = np.concatenate(
        [[row for row in kept if row % workers == worker] for worker in range(workers)]
    )
    np.testing.assert_array_equal(images, everything.images[rows.astype(int)])
    np.testing.assert_array_equal(labels, everything.labels[rows.astype(int)])
    assert stream.take(COUNT).names == tuple(np.array(everything.names)[kept])
    assert stream.take(3).names == tuple(np.array(everything.names)[[0, 1, 3]])


def test_a_known_corrupt_image_is_counted_and_told_once(broken):
    root, cut = broken
    cut(4)
    stream = load(root, max_corrupt=1)
    with pytest.warns(UserWarning, match="corrupt and skipped"):
        whole(stream)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole(stream)
        epoch_of(stream)
    assert len(stream.skipped) == 1


def test_too_many_corrupt_images_are_an_error_with_names(broken):
    root, cut = broken
    names = cut(1, 5, 9)
    stream = load(root, max_corrupt=2)
    with (
        pytest.warns(UserWarning),
        pytest.raises(TooManyCorruptImagesError, match="3 with max_corrupt=2") as caught,
        stream.errors(),
    ):
        list(stream.evaluation_batches(4))
    assert all(name in str(caught.value) for name in names)
    for read in (
        lambda stream: list(stream.training_batches(1, Share.of(1), seed=0, epoch=0)),
        lambda stream: stream.take(COUNT),
    ):
        stream = load(root, max_corrupt=2)
        with pytest.warns(UserWarning), pytest.raises(TooManyCorruptImagesError), stream.errors():
            read(stream)
    stream = load(root, max_corrupt=0)
    with (
        pytest.raises(TooManyCorruptImagesError, match=r"too many .*, 1 with"),
        stream.errors(),
    ):
        list(stream.evaluation_batches(4))


def test_nothing_left_is_an_error_not_an_endless_search(broken):
    root, cut = broken
    cut(*range(COUNT))
    stream = load(root, max_corrupt=100)
    with (
        pytest.warns(UserWarning),
        pytest.raises(TooManyCorruptImagesError, match="all 23 images are corrupt"),
        stream.errors(),
    ):
        list(stream.training_batches(4, Share.of(4), seed=0, epoch=0))
    with pytest.raises(TooManyCorruptImagesError, match="all 23 images are corrupt"):
        stream.take(2)


def test_a_corrupt_record_is_named_by_shard_and_file(made, tmp_path):
    wnid, name, encoded = made[1]
    small_imagenet.write_tfrecords(tmp_path, [made[0], (wnid, name, encoded[:-50])], shards=1)
    stream = load(tmp_path)
    with pytest.warns(UserWarning, match=rf"train-00000-of-00001, record 1 \({name}\) is corrupt"):
        assert len(stream.take(2)) == 1


def test_a_record_that_does_not_parse_is_a_corrupt_image(made, tmp_path):
    small_imagenet.write_tfrecords(tmp_path, made[:3], shards=1)
    shard = tmp_path / "train-00000-of-00001"
    texts = list(tf.data.TFRecordDataset(str(shard)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(shard)) as writer:
        for text in (texts[0], b"\xff" * len(texts[1]), texts[2]):
            writer.write(text)
    stream = load(tmp_path)
    with pytest.warns(UserWarning, match=r"record 1 is corrupt .*not a tf\.train\.Example"):
        assert stream.take(3).names == (made[0][1], made[2][1])


def test_a_file_that_went_away_is_an_error_not_a_corrupt_image(broken):
    root, _ = broken
    stream = load(root)
    gone = sorted(root.rglob("*.JPEG"))[7]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=gone.name), stream.errors():
        list(stream.evaluation_batches(4))
    assert stream.skipped == ()


# --- memory and real images ------------------------------------------------------------------


def test_little_is_decoded_ahead(tmp_path, monkeypatch):
    """After one batch of two: two more, one in the making, and what the decoders hold."""
    small_imagenet.write_tree(
        tmp_path, small_imagenet.pictures(np.random.default_rng(1), 200, 9, 22)
    )
    count, lock = [0], threading.Lock()

    def counted(encoded):
        with lock:
            count[0] += 1
        return decode(encoded)

    monkeypatch.setattr(stream_module, "decode", counted)
    batches = iter(load(tmp_path).training_batches(2, Share.of(2), seed=0, epoch=0))
    next(batches)
    settled = 0
    while settled != count[0]:
        settled = count[0]
        threading.Event().wait(0.3)
    decoders = max(16, os.cpu_count())  # tf.data starts with 16
    assert 2 <= settled <= 2 * (1 + 2 + 1) + decoders
    assert sum(1 for _ in batches) == 99
    assert count[0] == 200


def test_an_epoch_leaves_nothing_behind(tree, monkeypatch):
    """TensorFlow keeps Python functions for ever: none may hold an epoch's order."""
    orders = []
    kept = imagenet.ImageStream._order

    def watched(stream, seed, epoch):
        order = kept(stream, seed, epoch)
        orders.append(weakref.ref(order))
        return order

    monkeypatch.setattr(imagenet.ImageStream, "_order", watched)
    stream = load(tree)
    for epoch in range(3):
        epoch_of(stream, epoch=epoch)
    gc.collect()
    assert [order() for order in orders] == [None] * 3


def test_the_real_sample(data_dir):
    """One image a class, in Keras Applications' order of the classes."""
    stream = imagenet.load("validation", data_dir=f"{data_dir}/imagenet_sample")
    assert (stream.examples, stream.classes) == (1000, 1000)
    assert stream.input_shape == (256, 256, 3)
    examples = stream.take(6, seed=0)
    assert stream.take(1).names[0].startswith("n01440764/")  # tench, class 0
    for image, label, name in zip(examples.images, examples.labels, examples.names, strict=True):
        assert stream._source.files[label] == name
        path = stream._source.folder / name
        np.testing.assert_array_equal(image, centre_crop(decode(path.read_bytes())))
        assert 0 <= image.min() < image.max() <= 255
    with pytest.raises(DataNotFoundError, match=r"no train split .* holds validation \(tree\)"):
        imagenet.load("train", data_dir=f"{data_dir}/imagenet_sample")
    with pytest.raises(DataNotFoundError, match=r"imagenet_sample holds validation"):
        imagenet.load("validation", data_dir=data_dir)


def test_training_on_the_real_sample(data_dir):
    stream = imagenet.load("validation", data_dir=f"{data_dir}/imagenet_sample", limit=8)
    images, labels = epoch_of(stream, batch_size=4)
    assert images.shape == (2, 4, 256, 256, 3)
    assert len(set(labels.ravel())) == 8
    assert 0 <= images.min() < images.max() <= 255
