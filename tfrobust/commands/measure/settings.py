"""Settings of `tfrobust measure`, read and checked without TensorFlow.

tfrobust measure --model keras_applications:MobileNetV2 --images FOLDER
tfrobust measure --model resnet50 --weights resnet50.weights.h5 --images FOLDER
tfrobust measure --model mine.keras --preprocessing unit --images FOLDER
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from tfrobust.arguments import as_seed
from tfrobust.commands.terminal import existing_file, existing_folder
from tfrobust.errors import InputError

__all__ = ["Command", "Resolved", "Settings", "check_without_model"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, and how."""

    model: str
    """A .keras file, or a model of Keras Applications such as resnet50."""
    images: str
    """A folder of images, searched recursively in sorted order."""
    weights: str | None = None
    """Of a model of Keras Applications: imagenet (default), a file, or none (random)."""
    classes: int | None = None
    """Number of classes of a weight file other than ImageNet's 1,000."""
    limit: int = 100
    """Number of images to measure, the first ones."""
    max_corrupt: int = 10
    """Corrupt files that may be skipped."""
    size: int | None = None
    """Height and width in pixels that images are scaled and cropped to; default: the model's."""
    preprocessing: str | None = None
    """From RGB in 0..255 to the model's input: caffe, tf, torch, unit, none, or the name of a Keras
    application. Default: the application's own; required for a .keras file, which does not say."""
    search: Literal["auto", "exact", "sketch"] = "auto"
    """How the runner-up class is found: by every class's gradient (exact), or by random directions
    that rule most classes out (sketch). auto: exact up to 16 classes, else sketch."""
    directions: int = 64
    """Random directions of the sketch."""
    failure_probability: float = 1e-6
    """Of the sketch, per image: the probability that the runner-up is wrong."""
    pictured: int = 8
    """Number of images with a saliency map, evenly spaced from the least to the most robust."""
    attack: Literal["none", "gradient", "basic_iterative", "deepfool", "carlini_wagner"] = "none"
    """Also attack images, to compare with linearized robustness."""
    attacked: int = 20
    """Number of images to attack, the first ones."""
    batch_size: int = 16
    """Images per call; bounds the memory."""
    seed: int = 0
    """Of the sketch's directions and of random weights."""


@dataclasses.dataclass(frozen=True)
class Resolved(Settings):
    """Settings with every default filled in, and the content hashes of weights and images."""

    weights_sha256: str = ""
    """Of the file's bytes; of the values where there is no file."""
    images_sha256: str = ""
    """Of file names and pixels, as cropped."""


@dataclasses.dataclass(frozen=True)
class Command(Settings):
    """Measure a checkpoint on images: alignment, linearized robustness, saliency."""

    out: Path | None = None
    """Folder of the results; default: runs/measure-MODEL."""
    strategy: Literal["auto", "one", "mirrored", "multi_worker"] = "auto"
    """One device, all GPUs of this machine, or several workers."""
    open: bool = False
    """Open the page at the end."""


def check_without_model(command: Settings) -> None:
    """Check all that needs no model: ranges of numbers, and that files and folders exist.

    Raises:
        InputError: a number out of range.
        MissingFileError: no such folder or file.
    """
    least = {"limit": 1, "max_corrupt": 0, "pictured": 0, "attacked": 1, "batch_size": 1, "size": 1}
    for name, smallest in least.items():
        value = getattr(command, name)
        if value is not None and value < smallest:
            raise InputError(f"{name} must be at least {smallest}, got {value}")
    as_seed("--seed", command.seed)
    existing_folder(command.images)
    if command.model.endswith(".keras"):
        existing_file(command.model, "model")
    if command.weights not in (None, "imagenet", "none"):
        existing_file(command.weights, "weight")
