"""Settings of `tfrobust evaluate`, read and checked without TensorFlow.

    tfrobust evaluate mine.keras --data digits --epsilon 0.5
    tfrobust evaluate resnet50 --images val --epsilon 128 --limit 500

The JSON of `--json` and of `summary.json` in the run folder has these keys, explained in
`tfrobust.Benchmark`: examples, epsilon, norm, attacks, accuracy, robust_accuracy,
certified_accuracy, attack_success_rate, median_distance, median_certified_radius,
median_alignment, median_linearized_robustness, violations, uncertified. An infinite number is
the string "inf"; an undefined one, or a certificate that does not exist, is null.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tfrobust.arguments import as_seed
from tfrobust.commands.terminal import existing_file, existing_folder
from tfrobust.errors import InputError

__all__ = ["Command", "Identified", "Settings", "check_without_model"]

# settings of the model and of the preprocessing of images
_OF_IMAGES = ("weights", "classes", "size", "preprocessing")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is evaluated, and how."""

    model: Annotated[str, tyro.conf.Positional]
    """A .keras file, or with --images a model of Keras Applications such as resnet50."""
    epsilon: float
    """Radius at which accuracies are given, in the network's input units."""
    data: str | None = None
    """Test split of a data set: digits, mnist, cifar10, iris, wine or spambase."""
    images: str | None = None
    """Instead of --data: a folder with a folder of images per class, in the classes' order."""
    limit: int = 200
    """Examples: the first of a data set, evenly spaced ones of a folder."""
    attacks: tuple[str, ...] = ("deepfool", "carlini_wagner")
    """Attacks of tfrobust.minimal; the smallest perturbation that any of them finds counts."""
    norm: Literal["1", "2", "inf"] = "2"
    """p of the lp norm of perturbations."""
    weights: str | None = None
    """Of a model of Keras Applications: imagenet (default), a file, or none (random)."""
    classes: int | None = None
    """Number of classes of a weight file other than ImageNet's 1,000."""
    size: int | None = None
    """Height and width in pixels that images are scaled and cropped to; default: the model's."""
    preprocessing: str | None = None
    """Of images, as in tfrobust measure: caffe, tf, torch, unit, none, or an application."""
    max_corrupt: int = 10
    """Corrupt files that may be skipped."""
    batch_size: int = 32
    """Examples per call; bounds the memory."""
    seed: int = 0
    """Of random weights, and of the search for the runner-up among many classes."""


@dataclasses.dataclass(frozen=True)
class Identified(Settings):
    """Settings with the content hashes of the model's weights and of the examples."""

    weights_sha256: str = ""
    examples_sha256: str = ""


@dataclasses.dataclass(frozen=True)
class Command(Settings):
    """Evaluate one model: accuracy, robust accuracy, certified accuracy, alignment."""

    data_dir: Path | None = None
    """Folder of prepared data sets; default: TFROBUST_DATA_DIR."""
    json: bool = False
    """Print the summary as JSON: "inf" for infinite, null for undefined or not available."""
    out: Path | None = None
    """Also write a page, the summary and every example's results into this folder."""
    open: bool = False
    """Open the page at the end."""


def check_without_model(command: Command) -> None:
    """Check all that needs no model: ranges of numbers, and that files and folders exist.

    Raises:
        InputError: a number out of range, or incompatible settings.
        MissingFileError: no such folder or file.
    """
    for name in ("limit", "batch_size"):
        if getattr(command, name) < 1:
            raise InputError(f"{name} must be at least 1, got {getattr(command, name)}")
    as_seed("--seed", command.seed)
    if not (math.isfinite(command.epsilon) and command.epsilon >= 0):
        raise InputError(f"epsilon must be a finite number of at least 0, got {command.epsilon}")
    if (command.data is None) == (command.images is None):
        raise InputError("give labelled examples: either --data NAME or --images FOLDER")
    if command.data == "imagenet":
        raise InputError("imagenet is a folder of images: --images FOLDER/val")
    if command.open and command.out is None:
        raise InputError("there is no page to open: give its folder by --out FOLDER")
    if command.images is not None:
        existing_folder(command.images)
    else:
        given = [f"--{name}" for name in _OF_IMAGES if getattr(command, name) is not None]
        if given:
            raise InputError(f"{', '.join(given)} goes with --images, not with --data")
    if command.data is not None or command.model.endswith(".keras"):
        existing_file(command.model, "model")
    if command.weights not in (None, "imagenet", "none"):
        existing_file(command.weights, "weight")
    if command.data_dir is not None:
        existing_folder(command.data_dir)
