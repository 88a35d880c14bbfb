"""Where ImageNet is found: three layouts, the same images; what is wrong is named."""

import operator
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from helpers import small_imagenet
from helpers.small_imagenet import COUNT, WNIDS, load, whole

from tfrobust.data import DataNotFoundError
from tfrobust.data.crops import centre_crop
from tfrobust.data.imagenet.crc32c import masked_crc32c, masked_crc32c_of_rows
from tfrobust.data.images import decode
from tfrobust.data.stream import Share, Stream
from tfrobust.errors import CorruptImageWarning, ShortShardWarning


@pytest.mark.parametrize("source", ["tree", "records", "prepared"])
def test_evaluation_gives_each_image_once_with_its_label(source, made, request):
    stream = load(request.getfixturevalue(source))
    assert isinstance(stream, Stream)
    assert (stream.examples, stream.classes, stream.input_shape) == (COUNT, 3, (16, 16, 3))
    assert stream.value_range == (0.0, 255.0)
    images, labels = whole(stream)
    assert images.dtype == np.float32
    assert labels.dtype == np.int32
    by_name = {name: (wnid, encoded) for wnid, name, encoded in made}
    examples = stream.take(COUNT)
    names = [name.rpartition("/")[2] for name in examples.names]
    assert sorted(names) == sorted(by_name)
    for image, label, name in zip(images, labels, names, strict=True):
        wnid, encoded = by_name[name]
        assert label == WNIDS.index(wnid)
        np.testing.assert_array_equal(image, centre_crop(decode(encoded), (16, 16), 18))
    np.testing.assert_array_equal(images, examples.images)
    np.testing.assert_array_equal(labels, examples.labels)


def test_the_order_of_a_tree_is_that_of_its_sorted_names(tree, made, monkeypatch):
    """Whatever order the file system lists them in."""
    listed = os.scandir
    by_name = operator.attrgetter("name")
    monkeypatch.setattr(os, "scandir", lambda path: sorted(listed(path), key=by_name, reverse=True))
    assert load(tree).take(COUNT).names == tuple(f"{wnid}/{name}" for wnid, name, _ in made)


def test_provenance_names_files_and_says_what_its_hash_is_of(tree, records, prepared):
    places = [load(root).provenance for root in (tree, records, prepared)]
    assert [place.examples for place in places] == [COUNT] * 3
    assert len({place.sha256 for place in places}) == 3
    assert "class folders" in places[0].source
    assert "build_imagenet_data" in places[1].source
    assert "tensorflow-datasets" in places[2].source
    assert places[2].version == "5.1.0"
    assert all("names and sizes, not of pixels" in place.processing for place in places)
    assert load(tree).provenance == places[0]


@pytest.fixture
def copied(tree, tmp_path):
    return shutil.copytree(tree, tmp_path / "copied")


def test_the_first_of_several_sources_is_taken_unless_one_is_named(tree, records, tmp_path):
    both = tmp_path / "imagenet"
    shutil.copytree(tree, both)
    for shard in records.iterdir():
        shutil.copy(shard, both)
    assert "class folders" in load(both).provenance.source
    assert "shards" in load(both, source="tfrecord").provenance.source
    assert "class folders" in load(tmp_path).provenance.source  # data_dir/imagenet
    with pytest.raises(ValueError, match="unknown source 'lmdb'; there are tree, tfrecord, tfds"):
        load(both, source="lmdb")
    with pytest.raises(DataNotFoundError, match="holds none"):
        load(both, source="tfds")


def test_the_environment_names_the_folder(tree, prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("TFROBUST_DATA_DIR", str(tree))
    assert len(load(None)) == COUNT
    shutil.copytree(prepared, tmp_path / "tensorflow_datasets")
    monkeypatch.setenv("TFROBUST_DATA_DIR", str(tmp_path))
    assert "tensorflow-datasets" in load(None).provenance.source
    monkeypatch.delenv("TFROBUST_DATA_DIR")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    with pytest.raises(DataNotFoundError, match=r"there is no folder .*none"):
        load(None)


def test_not_found_says_the_three_ways(tmp_path):
    with pytest.raises(DataNotFoundError) as caught:
        load(tmp_path)
    message = str(caught.value)
    for way in ("train/<wnid>/*.JPEG", "train-00000-of-01024", "imagenet2012/<version>"):
        assert way in message
    assert str(tmp_path) in message


def test_a_missing_split_names_those_there_are(tree, tmp_path):
    with pytest.raises(DataNotFoundError, match=r"no validation split .* holds train \(tree\)"):
        load(tree, "validation")
    shutil.copytree(tree / "train", tmp_path / "imagenet_sample" / "val")
    with pytest.raises(DataNotFoundError, match=r"imagenet_sample holds validation \(tree\)"):
        load(tmp_path)
    assert len(load(tmp_path / "imagenet_sample", "validation")) == COUNT
    with pytest.raises(ValueError, match="unknown split 'test'; there are train, validation"):
        load(tree, "test")


def test_val_and_validation_together_are_ambiguous(tree, tmp_path):
    for name in ("val", "validation"):
        shutil.copytree(tree / "train", tmp_path / name)
    with pytest.raises(ValueError, match="both val and validation"):
        load(tmp_path, "validation")


def test_wrong_number_of_classes(tree, prepared):
    with pytest.raises(ValueError, match=r"holds 3 class folders .*1000 classes are expected"):
        load(tree, classes=1000)
    with pytest.raises(ValueError, match=r"has 3 classes \(n01440764 .. n02999410\), but 1000"):
        load(prepared, classes=1000)


def test_an_empty_class_folder_is_named(copied):
    for file in (copied / "train" / WNIDS[1]).iterdir():
        file.unlink()
    (copied / "train" / WNIDS[1] / "readme.txt").write_text("none")
    with pytest.raises(ValueError, match=f"no images in class folder {WNIDS[1]} of"):
        load(copied)


def test_images_without_class_folders(copied):
    for file in list((copied / "train").rglob("*.JPEG")):
        file.rename(copied / "train" / file.name)
    for folder in list((copied / "train").iterdir()):
        if folder.is_dir():
            folder.rmdir()
    with pytest.raises(ValueError, match="images but no class folders"):
        load(copied)


def test_a_missing_shard_is_named(records, tmp_path):
    root = tmp_path / "missing"
    shutil.copytree(records, root)
    (root / "train-00001-of-00003").unlink()
    with pytest.raises(DataNotFoundError, match=r"1 of 3 shards .*train-00001-of-00003"):
        load(root)


def test_shards_of_two_sets_are_refused(records, tmp_path):
    shutil.copytree(records, tmp_path / "mixed")
    (tmp_path / "mixed" / "train-00000-of-00009").write_bytes(b"")
    with pytest.raises(ValueError, match="mixes train shards -of-00003 and -of-00009"):
        load(tmp_path / "mixed")


@pytest.mark.parametrize("left", [0.5, 0.999])
def test_a_shard_cut_off_is_named(records, tmp_path, left):
    root = tmp_path / "cut"
    shutil.copytree(records, root)
    shard = root / "train-00002-of-00003"
    data = shard.read_bytes()
    shard.write_bytes(data[: int(left * len(data))])
    with pytest.raises(ValueError, match=r"train-00002-of-00003 is truncated in record \d"):
        load(root)


def test_shards_that_are_something_else(records, tmp_path):
    root = tmp_path / "else"
    root.mkdir()
    (root / "train-00000-of-00001").write_bytes(b"this is no record at all")
    with pytest.raises(ValueError, match="not an uncompressed TFRecord"):
        load(root)
    (root / "train-00000-of-00001").write_bytes(b"")
    with pytest.raises(DataNotFoundError, match="hold no example"):
        load(root)
    with tf.io.TFRecordWriter(str(root / "train-00000-of-00001")) as writer:
        feature = {"x": tf.train.Feature(int64_list=tf.train.Int64List(value=[1]))}
        example = tf.train.Example(features=tf.train.Features(feature=feature))
        writer.write(example.SerializeToString())
    with pytest.raises(ValueError, match=r"record 0 .*lacks image/encoded .*it holds x$"):
        load(root)


def test_empty_shards_among_others(made, tmp_path):
    small_imagenet.write_tfrecords(tmp_path, made[:2], shards=4)
    examples = load(tmp_path).take(2)
    assert examples.names == (made[0][1], made[1][1])


@pytest.mark.parametrize("shard", [0, 2])
def test_a_shard_of_no_bytes_is_named(records, tmp_path, shard):
    shutil.copytree(records, tmp_path / "cut")
    (tmp_path / "cut" / f"train-0000{shard}-of-00003").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"train-0000{shard}-of-00003 is empty"):
        load(tmp_path / "cut")


def test_a_shard_cut_off_after_a_record_is_named(records, tmp_path):
    shutil.copytree(records, tmp_path / "cut")
    shard = tmp_path / "cut" / "train-00001-of-00003"
    one = next(tf.data.TFRecordDataset(str(shard)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(shard)) as writer:
        writer.write(one)
    with pytest.warns(ShortShardWarning, match="train-00001-of-00003 holds 1 examples, others"):
        load(tmp_path / "cut")


def test_a_damaged_length_is_named(records, tmp_path):
    shutil.copytree(records, tmp_path / "cut")
    shard = tmp_path / "cut" / "train-00001-of-00003"
    data = bytearray(shard.read_bytes())
    data[9] ^= 1  # of the checksum
    shard.write_bytes(data)
    with pytest.raises(
        ValueError, match="train-00001-of-00003 is damaged in the header of record 0"
    ):
        load(tmp_path / "cut")


@pytest.mark.parametrize("kind", ["records", "prepared"])
def test_a_record_that_differs_from_its_checksum_is_named_counted_and_skipped(
    request, tmp_path, kind
):
    """A changed pixel that the decoder would not notice."""
    shutil.copytree(request.getfixturevalue(kind), tmp_path / "cut")
    shard = max(path for path in (tmp_path / "cut").rglob("*train*") if path.is_file())
    whole = load(tmp_path / "cut")
    record = list(tf.data.TFRecordDataset(str(shard)).as_numpy_iterator())[-1]
    data = bytearray(shard.read_bytes())
    data[data.index(record) + len(record) // 2] ^= 1
    shard.write_bytes(data)
    stream = load(tmp_path / "cut")
    with pytest.warns(CorruptImageWarning, match=rf"{shard.name}, record \d+ .*its checksum"):
        examples = stream.take(COUNT)
    assert len(examples) == COUNT - 1
    assert len(stream.skipped) == 1
    assert len(whole) == COUNT


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 127, 128, 129, 1000, 70001])
def test_checksums_are_those_of_tensorflow(tmp_path, size):
    text = np.random.default_rng(size).bytes(size)
    with tf.io.TFRecordWriter(str(tmp_path / "r")) as writer:
        writer.write(text)
    written = np.frombuffer((tmp_path / "r").read_bytes(), np.uint8)
    assert masked_crc32c(text) == written[-4:].view("<u4")[0]
    assert masked_crc32c_of_rows(written[None, :8]) == written[8:12].view("<u4")[0]


@pytest.mark.parametrize(("first", "wrong"), [(0, 0), (2, 4)])
def test_labels_out_of_range_come_out_of_the_stream(made, tmp_path, first, wrong):
    """Labels are known when their records are read; the first is read at once."""
    mixed = [row for row in made if row[0] == WNIDS[1]]
    odd = [row for row in made if row[0] == WNIDS[0 if first == 0 else 2]]
    small_imagenet.write_tfrecords(tmp_path, mixed + odd, shards=1, first_label=first)
    stream = load(tmp_path)
    message = rf"train-00000-of-00001, record \d+ has label {wrong}, .* in 1\.\.3"
    with pytest.raises(ValueError, match=message):
        stream.take(len(stream))
    with pytest.raises(ValueError, match="has label"), stream.errors():
        list(stream.training_batches(1, Share.of(1), seed=0, epoch=0))


def test_a_label_out_of_range_in_the_first_record_is_told_at_once(made, tmp_path):
    small_imagenet.write_tfrecords(tmp_path, made, first_label=7)
    with pytest.raises(ValueError, match="record 0 has label 7"):
        load(tmp_path)


def test_prepared_data_that_lost_a_shard_or_examples(prepared, made, tmp_path):
    root = tmp_path / "prepared"
    shutil.copytree(prepared, root)
    (shard,) = root.rglob("*train.tfrecord*")
    small_imagenet.write_tfrecords(tmp_path / "fewer", made[:5], shards=1)
    one = next(tf.data.TFRecordDataset(str(shard)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(shard)) as writer:
        writer.write(one)
    with pytest.raises(ValueError, match=rf"{shard} holds 1 train examples, .* says {COUNT}"):
        load(root)
    shard.unlink()
    with pytest.raises(DataNotFoundError, match="1 of 1 shards are missing"):
        load(root)


def test_other_formats_of_prepared_data_are_refused(made, tmp_path):
    pytest.importorskip("array_record")
    small_imagenet.write_tfds(tmp_path, made[:3], file_format="array_record")
    with pytest.raises(ValueError, match="prepared as array_record; prepare it as tfrecord"):
        load(tmp_path)
