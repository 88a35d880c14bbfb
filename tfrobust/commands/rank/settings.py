"""Settings of `tfrobust rank`, read and checked without TensorFlow.

tfrobust rank first.keras second.keras third.keras --data mnist
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from tfrobust.commands.terminal import existing_file, existing_folder
from tfrobust.errors import InputError

__all__ = ["Command", "Identified", "Settings", "check_without_model"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Rank saved models by certified bound, linearized robustness and attack distance."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Two or more .keras files."""
    data: str
    """A data set of `tfrobust.data`: digits, mnist, cifar10, iris, wine, spambase."""
    images: int = 200
    """Number of test examples, the first ones."""
    attack: str | None = None
    """Any attack of `tfrobust.attacks.minimal`; default: carlini_wagner for images, deepfool for
    tables, whose wide value ranges make Carlini-Wagner inaccurate."""
    batch_size: int = 100
    """Examples per call; bounds the memory."""


@dataclasses.dataclass(frozen=True)
class Identified(Settings):
    """Settings with the content hashes of the models."""

    sha256: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Command(Settings):
    """Rank saved models by certified bound, linearized robustness and attack distance."""

    data_dir: Path | None = None
    """Folder of prepared data sets; default: TFROBUST_DATA_DIR."""
    out: Path | None = None
    """Folder of the results; default: runs/rank-DATA."""
    open: bool = False
    """Open the page at the end."""


def check_without_model(command: Settings) -> None:
    """Check all that needs no model: ranges of numbers, and that files and folders exist.

    Raises:
        InputError: a number out of range, or a single model.
        MissingFileError: no such folder or file.
    """
    if command.batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, got {command.batch_size}")
    if command.images < 1:
        raise InputError(f"--images must be at least 1, got {command.images}")
    if len(command.models) < 2:
        raise InputError("one model cannot be ranked: give two or more .keras files")
    if command.data == "imagenet":
        raise InputError("imagenet does not fit in memory: there are digits, mnist, cifar10, ...")
    for path in command.models:
        existing_file(path, "model")
    if command.data_dir is not None:
        existing_folder(command.data_dir)
