"""The robust network, taken from another run."""

from __future__ import annotations

from pathlib import Path

import reference_models
from experiments.common.experiment import Task
from experiments.common.train import save_model, say
from experiments.noack2020.selection import RECORD
from experiments.noack2020.study import folder_of
from tfrobust.errors import MissingFileError
from tfrobust.report import Results

__all__ = ["check", "take"]


def _source(folder: str, name: str, seed: int) -> Path:
    return Path(folder).resolve() / folder_of(name, seed) / "model.keras"


def check(folder: str | None, name: str, seed: int) -> None:
    """A network of another run is there, if one is to be taken.

    Raises:
        MissingFileError: it is not.
    """
    if folder is None:
        return
    source = _source(folder, name, seed)
    if not (source.is_file() and (source.parent / RECORD).is_file()):
        raise MissingFileError(
            f"--teachers {folder} has no {folder_of(name, seed)}/model.keras: give the folder of a "
            "run of experiments.noack2020.mnist in which that network is finished"
        )


def take(task: Task, folder: str | None, name: str, seed: int) -> None:
    """Copy a network of another run into this one, where it is not there yet."""
    file = f"{folder_of(name, seed)}/model.keras"
    if folder is None or task.run.has(file):
        return
    source = _source(folder, name, seed)
    say(f"{name}: copied from {source.parent}")
    record = {**reference_models.provenance(source), "copied from": str(source)}
    other = Results.open(Path(folder).resolve())
    selection = other.read_json(f"{folder_of(name, seed)}/{RECORD}")
    task.run.write_json(f"{folder_of(name, seed)}/{RECORD}", selection)
    save_model(task.run, file, reference_models.load(source), record)
