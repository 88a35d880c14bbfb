"""The sketch against the exact search: passes, time and memory on ResNet50 with 1,000 classes.

    python -m benchmarks.sketch [--size 64 --images 4 --repeats 2 --memory-size 224]

Both searches run in turn after a warm-up of each, and the medians are compared. The weights are
random, with batch normalisation's statistics taken from images, so that activations and logits
have a sensible size. Exits with status 1 if a ratio misses its limit or the searches disagree.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tyro

from benchmarks.speed import compare
from tfrobust.alignment import Alignment, measure
from tfrobust.arguments import as_count
from tfrobust.commands import run
from tfrobust.errors import InputError, MissingFileError
from tfrobust.report import versions

CLASSES = 1000
FEWER_PASSES, LESS_TIME = 10, 8
# images that batch normalisation's statistics come from
SETTLING = 32


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured."""

    size: int = 64
    """Height and width of the images in pixels."""
    images: int = 4
    """Measured together, as one batch."""
    directions: int = 64
    """Of the sketch."""
    repeats: int = 2
    """Timed runs of each search."""
    memory_size: int = 224
    """Height and width for the peak of memory."""


def check(settings: Settings) -> None:
    """Raises: InputError for a setting out of range, MissingFileError where images are missing."""
    least = {"size": 32, "images": 1, "directions": 1, "repeats": 1, "memory_size": 32}
    for name, smallest in least.items():
        as_count(name, getattr(settings, name), smallest)
    if settings.images > SETTLING:
        raise InputError(f"images must be at most {SETTLING}, got {settings.images}")
    image_files()


def image_files() -> list[Path] | None:
    """ImageNet's validation images in the folder of data sets; None where none is named.

    Raises:
        MissingFileError: fewer than are needed.
    """
    folder = os.environ.get("TFROBUST_DATA_DIR")
    if not folder:
        return None
    place = Path(folder) / "imagenet_sample" / "val"
    files = sorted(place.glob("*/*.JPEG"))
    if len(files) < SETTLING:
        raise MissingFileError(f"{place} holds {len(files)} images, {SETTLING} are needed")
    return files


def load_images(size: int, count: int) -> tuple[np.ndarray, str]:
    """Preprocessed images (count, size, size, 3), and their source."""
    files = image_files()
    if files is None:
        pixels = np.random.default_rng(0).uniform(0, 255, (count, size, size, 3))
        source = "uniform noise (TFROBUST_DATA_DIR names no folder of data sets)"
    else:
        chosen = files[:: len(files) // count][:count]
        pixels = np.stack([_centre(path, size) for path in chosen])
        source = "ImageNet images"
    return keras.applications.resnet50.preprocess_input(pixels.astype("float32")), source


def _centre(path: Path, size: int) -> np.ndarray:
    image = tf.io.decode_jpeg(path.read_bytes(), channels=3)
    side = min(image.shape[:2])
    image = tf.image.resize_with_crop_or_pad(image, side, side)
    return tf.image.resize(image, (size, size), antialias=True).numpy()


def resnet50(size: int) -> keras.Model:
    """ResNet50 of Keras Applications with random weights, the same for every size."""
    keras.utils.set_random_seed(0)
    return keras.applications.ResNet50(
        weights=None, classifier_activation=None, input_shape=(size, size, 3), classes=CLASSES
    )


def settle(model: keras.Model, images: np.ndarray) -> keras.Model:
    """Batch normalisation's statistics from one pass over the images."""
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momentum = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    model(images, training=True)
    for layer, before in zip(layers, momentum, strict=True):
        layer.momentum = before
    return model


_MEMORY = """
import resource, sys
from benchmarks.sketch import SETTLING, load_images, resnet50, settle
from tfrobust.alignment import measure
size, count, directions = map(int, sys.argv[1:])
model = resnet50(size)
# small images: their pass must not be the peak
model.set_weights(settle(resnet50(32), load_images(32, SETTLING)[0]).get_weights())
x, _ = load_images(size, count)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
measure(model, x, search="sketch", directions=directions)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(before / 1024, after / 1024)
"""


def memory(size: int, count: int, directions: int) -> tuple[float, float]:
    """Peak resident memory (MiB) of a fresh process before and after a sketch `measure`."""
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(size), str(count), str(directions)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    before, after = map(float, done.stdout.split()[-2:])
    return before, after


def main(arguments: list[str] | None = None) -> None:
    """Print the ratios and the memory.

    Raises:
        SystemExit: status 1 where a limit is missed.
        TfrobustError: a setting out of range, or no images in the folder of data sets.
    """
    settings = tyro.cli(Settings, prog="benchmarks.sketch", args=arguments)
    check(settings)
    print(versions()["machine"], "- TensorFlow", tf.__version__)
    # first: a process that starts another bequeaths it the peak of its own memory
    before, after = memory(settings.memory_size, settings.images, settings.directions)
    x, source = load_images(settings.size, SETTLING)
    model, x = settle(resnet50(settings.size), x), x[: settings.images]
    print(
        f"ResNet50, random weights, {CLASSES} classes, {len(x)} {source}, {settings.size} px, "
        f"{settings.directions} directions"
    )
    results: dict[str, Alignment] = {}

    def sketch() -> None:
        results["sketch"] = measure(model, x, search="sketch", directions=settings.directions)

    def exact() -> None:
        results["exact"] = measure(model, x)

    timed = compare("sketch / exact", sketch, exact, 1 / LESS_TIME, settings.repeats)
    gradients = {name: result.exact_gradients for name, result in results.items()}
    # also a Jacobian-vector product along x, and the runner-up's gradient once more
    passes = settings.directions + 2 + float(np.mean(gradients["sketch"]))
    fewer = float(np.mean(gradients["exact"])) / passes
    same = np.mean(results["sketch"].runner_up == results["exact"].runner_up)
    rho = [results[name].linearized_robustness for name in ("sketch", "exact")]
    apart = float(np.abs(rho[0] / rho[1] - 1).max())

    few = ", ".join(map(str, gradients["sketch"]))
    print(f"\nexact gradients per image: exact {CLASSES}, sketch {few}")
    print(f"passes per image: exact {CLASSES}, sketch {passes:.1f}")
    print(f"{fewer:.1f} times fewer passes (limit {FEWER_PASSES})")
    print(
        f"seconds: exact {timed.other:.2f}, sketch {timed.ours:.2f}; {1 / timed.ratio:.1f} times "
        f"less time (limit {LESS_TIME}; single pairs "
        f"{1 / timed.spread[1]:.1f}..{1 / timed.spread[0]:.1f})"
    )
    print(f"same runner-up {same:.0%}, largest relative difference of rho~ {apart:.1e}")

    print(
        f"peak resident memory, {settings.images} images of {settings.memory_size} px: "
        f"{after:.0f} MiB with a sketch measure, {before:.0f} MiB before it"
    )
    failed = ["passes"] if fewer < FEWER_PASSES else []
    failed += ["time"] if timed.ratio > timed.limit else []
    failed += ["agreement"] if same < 1 or apart > 1e-4 else []
    if failed:
        sys.exit(f"\nLIMIT MISSED: {', '.join(failed)}")
    print("\nwithin all limits")


if __name__ == "__main__":
    run(main)
