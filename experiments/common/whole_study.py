"""All experiments of a study in one folder, with a page that links theirs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from experiments.common.checks import option
from experiments.common.command_line import Command, parse
from experiments.common.experiment import Experiment, execute
from tfrobust import report
from tfrobust.commands import show
from tfrobust.report import Section, versions

__all__ = ["Part", "Study", "execute_study"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """None: single experiments have settings."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One experiment of a study."""

    experiment: Experiment
    covers: str
    """Tables and figures."""
    arguments: Callable[[Path], Sequence[str]] = lambda folder: ()
    """More arguments, from the study's folder."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A paper's experiments in the order in which they are run."""

    name: str
    """Of the command and its folder."""
    title: str
    about: str
    """Below the title of the page."""
    presets: Mapping[str, str]
    """One sentence per preset."""
    parts: Mapping[str, Part]
    """By the name of their folder."""

    @property
    def settings(self) -> dict[str, Settings]:
        """The presets' settings, as the command line takes them."""
        return dict.fromkeys(self.presets, Settings())


def execute_study(study: Study, arguments: Sequence[str] | None = None) -> Path:
    """Run every experiment; the index page, which is written after each, is at this path.

    Args:
        study: what is run.
        arguments: the command line, a preset and where to run it; sys.argv where None.

    Raises:
        SystemExit: a malformed command line (status 2).
        TfrobustError, OSError: of an experiment; pages of those before it are complete.
    """
    command = parse(study.settings, study.name, arguments, about=study.presets)
    shared = _shared_arguments(command)
    pages: dict[str, Path] = {}
    for name, part in study.parts.items():
        print(f"\n{name}: {part.covers}", flush=True)
        out = ["--out", str(command.out / name)]
        pages[name] = execute(part.experiment, [*shared, *out, *part.arguments(command.out)])
        index = _write_index(study, command, pages)
    show(index, open_it=command.open)
    return index


def _shared_arguments(command: Command) -> list[str]:
    names = ("preset", "strategy", "data_dir", "scheduler")
    given = {option(name): getattr(command, name) for name in names}
    return [str(part) for pair in given.items() if pair[1] is not None for part in pair]


def _write_index(study: Study, command: Command, pages: Mapping[str, Path]) -> Path:
    """A link per finished experiment, and the claims of all."""
    claims = [
        {"experiment": name, **claim}
        for name, page in pages.items()
        for claim in json.loads((page.parent / "claims.json").read_text())
    ]
    sections = [
        Section(name, study.parts[name].covers, link=f"{name}/{page.name}")
        for name, page in pages.items()
    ]
    return report.write(
        report.Page(
            title=f"{study.title}: all experiments",
            lead=f"{study.presets[command.preset]} {study.about}",
            sections=(*sections, Section("Every claim", "", table=pd.DataFrame(claims))),
            settings={"preset": command.preset},
            versions=versions(),
        ),
        command.out / "report.html",
    )
