"""Settings of `tfrobust report`, and the classifiers in run folders, without TensorFlow.

tfrobust report runs/noack2020-mnist-demo runs/etmann2019-mnist-demo
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tfrobust.commands.terminal import existing_folder
from tfrobust.errors import InputError, MissingFileError

__all__ = ["Command", "Found", "LeftOut", "Settings", "check_without_model", "classifiers_in"]

_MODEL = "model.keras"
# checkpoints of training, which are no results
_TRAINING = "training"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How classifiers are measured."""

    examples: int = 200
    """Number of test examples, the first ones; for cosines, of training examples."""
    epsilon: float = 1.5
    """Radius of robust accuracy: for images in units of the pixel range, as if pixels were in
    [0, 1]; for tables in the units of their features."""
    norm: Literal["2", "inf"] = "2"
    """p of the lp norm of epsilon, attack distance and certified bound."""
    steps: int = 40
    """Steps of projected gradient descent."""
    restarts: int = 3
    """Random starts of projected gradient descent."""
    attack: str = "deepfool"
    """Attack of `tfrobust.attacks.minimal` whose distances are given."""
    batch_size: int = 100
    """Examples per call; bounds the memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(Settings):
    """The trained classifiers of several studies in one table."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders (with run.json), or folders of studies that hold several."""
    data_dir: Path | None = None
    """Folder of prepared data sets; default: TFROBUST_DATA_DIR."""
    out: Path = Path("runs/report")
    """Folder of the results."""
    open: bool = False
    """Open the page at the end."""


@dataclasses.dataclass(frozen=True)
class Found:
    """A model in a run folder."""

    run: str
    """Name of the run: its folder's, behind that of the study's folder where that was given."""
    folder: Path
    """The run folder."""
    network: str
    """The model's folder, relative to the run folder."""
    path: Path
    """The .keras file."""

    def __str__(self) -> str:
        return f"{self.run}/{self.network}"


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A model that is not in the table."""

    model: str
    reason: str


def check_without_model(command: Command) -> None:
    """Check all that needs no model: ranges of numbers, and that folders exist.

    Raises:
        InputError: a number out of range, or no run.
        MissingFileError: no such folder.
    """
    for name in ("examples", "steps", "restarts", "batch_size"):
        if getattr(command, name) < 1:
            option = name.replace("_", "-")
            raise InputError(f"--{option} must be at least 1, got {getattr(command, name)}")
    if not (math.isfinite(command.epsilon) and command.epsilon >= 0):
        raise InputError(f"--epsilon must be a finite number of at least 0, got {command.epsilon}")
    if not command.runs:
        raise InputError("give one or more run folders")
    for run in command.runs:
        existing_folder(run)
    if command.data_dir is not None:
        existing_folder(command.data_dir)


def classifiers_in(runs: Sequence[str]) -> tuple[list[Found], list[LeftOut]]:
    """Every model.keras in the run folders, and the other models there.

    Args:
        runs: run folders, or folders that hold several; a model that lies in two of them is listed
            once.

    Raises:
        MissingFileError: a folder holds no run.json, or no model.keras.
    """
    roots = list(dict.fromkeys(Path(run).resolve() for run in runs))
    found: dict[Path, Found] = {}
    left_out: dict[Path, LeftOut] = {}
    for root, name in zip(roots, _names(roots), strict=True):
        folders = {path.parent for path in root.rglob("run.json")}
        if not folders:
            raise MissingFileError(
                f"there is no run.json in {root} or below it: give the folder of a run"
            )
        models = [
            path
            for path in sorted(root.rglob("*.keras"))
            if not any(part == _TRAINING or part[0] == "." for part in path.relative_to(root).parts)
        ]
        if _MODEL not in {path.name for path in models}:
            raise MissingFileError(
                f"there is no classifier in {root}: none of its folders holds a {_MODEL}"
            )
        for path in models:
            shown = f"{name}/{path.relative_to(root).as_posix()}"
            # a run may lie in another's folder
            folder = next((parent for parent in path.parents if parent in folders), None)
            if path.name != _MODEL:
                reason = f"it is not called {_MODEL}: a part of another model"
                left_out.setdefault(path, LeftOut(shown, reason))
            elif folder is None:
                reason = "there is no run.json in its folder or above it"
                left_out.setdefault(path, LeftOut(shown, reason))
            else:
                inner = folder.relative_to(root).as_posix()
                run = name if inner == "." else f"{name}/{inner}"
                network = path.parent.relative_to(folder).as_posix()
                found.setdefault(path, Found(run, folder, network, path))
    return list(found.values()), list(left_out.values())


def _names(roots: Sequence[Path]) -> list[str]:
    """Names of the folders, with as many of their parents as tell them apart."""
    depth = 1
    while True:
        names = ["/".join(root.parts[-depth:]) for root in roots]
        if len(set(names)) == len(roots):
            return names
        depth += 1
