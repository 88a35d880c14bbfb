"""The members of a cohort, and how far each of them is."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfrobust.report import RunFolderError

__all__ = ["FAILURE", "Member", "Progress", "grid", "progress_of"]

FAILURE = "failure.json"


@dataclasses.dataclass(frozen=True)
class Member:
    """One member of a cohort: a classifier, or a kind of random ones."""

    name: str
    """As messages and pages call it."""
    folder: str
    """Of its files, in the run folder."""
    settings: Mapping[str, Any]
    """What tells it from the others."""


def grid(name: str, folder: str, settings: Any, /, **axes: str) -> list[Member]:
    """One member per combination of the values that an experiment's settings list.

    Args:
        name, folder: format strings of the members' settings, such as "{dataset}, seed {seed}".
        settings: of the experiment.
        axes: by the name of a member's setting, that of the experiment's which lists its values;
            the last one varies fastest.
    """
    products = itertools.product(*(getattr(settings, values) for values in axes.values()))
    members = [dict(zip(axes, values, strict=True)) for values in products]
    return [Member(name.format(**each), folder.format(**each), each) for each in members]


@dataclasses.dataclass(frozen=True)
class Progress:
    """The members of a cohort by how far they are, each in the cohort's order."""

    finished: tuple[Member, ...]
    failed: tuple[tuple[Member, str], ...]
    """With the error."""
    pending: tuple[Member, ...]


def progress_of(folder: Path, members: Sequence[Member], complete: Sequence[str]) -> Progress:
    """How far the members are.

    Args:
        folder: the run folder.
        members: all of them.
        complete: files of a member that are all there once it is finished.

    Raises:
        RunFolderError: the record of a failure cannot be read.
    """
    finished, failed, pending = [], [], []
    for member in members:
        place = folder / member.folder
        if (place / FAILURE).exists():
            failed.append((member, _reason(place / FAILURE)))
        elif all((place / file).exists() for file in complete):
            finished.append(member)
        else:
            pending.append(member)
    return Progress(tuple(finished), tuple(failed), tuple(pending))


def _reason(path: Path) -> str:
    try:
        record = json.loads(path.read_text())
        return f"{record['error']}: {record['message']}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{path} cannot be read ({error!r}). Delete it and run the same command again."
        ) from error
