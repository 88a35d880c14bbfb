"""The same few images in the three layouts that ImageNet comes in, and how tests read them."""

import io

import numpy as np
import tensorflow as tf

from helpers.pictures import encoded, smooth
from tfrobust import imagenet

COUNT = 23
SMALL = {"classes": 3, "size": (16, 16), "shorter_side": (18, 24), "validation_side": 18}
WNIDS = ("n01440764", "n01443537", "n02999410")


def pictures(rng, count, height=40, width=52):
    """(wnid, file name, encoded), sorted as the tree is; sizes and proportions differ."""
    made = []
    for index in range(count):
        image = smooth(rng, height + index % 5, width - 3 * (index % 7))
        made.append((WNIDS[index % len(WNIDS)], f"ILSVRC2012_{index:08}.JPEG", encoded(image)))
    return sorted(made)


def write_tree(root, made, split="train"):
    for wnid, name, data in made:
        (root / split / wnid).mkdir(parents=True, exist_ok=True)
        (root / split / wnid / name).write_bytes(data)


def write_tfrecords(root, made, shards=3, split="train", first_label=1):
    """Features and shard names of TensorFlow's build_imagenet_data.py."""
    root.mkdir(parents=True, exist_ok=True)

    def integers(*values):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    def string(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    for shard, rows in enumerate(np.array_split(np.arange(len(made)), shards)):
        path = root / f"{split}-{shard:05}-of-{shards:05}"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for row in rows:
                wnid, name, data = made[row]
                feature = {
                    "image/height": integers(1),
                    "image/width": integers(1),
                    "image/colorspace": string(b"RGB"),
                    "image/channels": integers(3),
                    "image/class/label": integers(WNIDS.index(wnid) + first_label),
                    "image/class/synset": string(wnid.encode()),
                    "image/format": string(b"JPEG"),
                    "image/filename": string(name.encode()),
                    "image/encoded": string(data),
                }
                example = tf.train.Example(features=tf.train.Features(feature=feature))
                writer.write(example.SerializeToString())


def write_tfds(root, made, **options):
    """Prepared by tensorflow-datasets itself, under the name of the registered data set."""
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=WNIDS),
            "file_name": tfds.features.Text(),
        }
    )
    with tfds.core.registered.skip_registration():

        class Small(tfds.core.GeneratorBasedBuilder):
            name = "imagenet2012"
            VERSION = tfds.core.Version("5.1.0")

            def _info(self):
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                for wnid, name, data in made:
                    yield name, {"image": io.BytesIO(data), "label": wnid, "file_name": name}

    Small(data_dir=root, **options).download_and_prepare()


def load(root, split="train", **settings):
    """A small stream."""
    return imagenet.load(split, data_dir=root, **{**SMALL, **settings})


def whole(stream, workers=1):
    """Every example once, as evaluation gives them."""
    parts = [
        batch
        for worker in range(workers)
        for batch in stream.evaluation_batches(
            5, workers=workers, worker=worker
        ).as_numpy_iterator()
    ]
    return tuple(np.concatenate([part[name] for part in parts]) for name in ("images", "labels"))
