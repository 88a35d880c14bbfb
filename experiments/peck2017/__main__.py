"""All experiments of Peck 2017 in one folder, with a page that links theirs.

    python -m experiments.peck2017 --preset demo [--out FOLDER] [--data-dir FOLDER]

Settings of a single experiment are set by its own module; this one takes a preset only.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments.common.checks import option
from experiments.common.command_line import parse
from experiments.common.experiment import execute
from experiments.peck2017 import (
    cnns,
    kernels,
    linear,
    normalisation,
    random_mlps,
    regularised,
    study,
    trained_mlps,
)
from tfrobust import report
from tfrobust.commands import run, show
from tfrobust.report import Section, versions

EXPERIMENTS = {
    "linear": (linear, "Table 3.1, Figure 3.2"),
    "random-mlps": (random_mlps, "Table 4.2, Figure 4.1"),
    "trained-mlps": (trained_mlps, "Table 4.3, Figure 4.2"),
    "regularised": (regularised, "Figure 4.3"),
    "cnns": (cnns, "Tables 5.1, 5.2, Figures 5.8 to 5.11"),
    "kernels": (kernels, "Figures 5.12, 5.13"),
    "normalisation": (normalisation, "Table 5.3"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """None: single experiments have settings."""


PRESETS = dict.fromkeys(study.SCALES, Settings())


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run every experiment; the index page, which is written after each, is at this path."""
    command = parse(PRESETS, "peck2017", arguments, about=study.SCALES)
    names = ("preset", "strategy", "data_dir", "scheduler")
    given = {option(name): getattr(command, name) for name in names}
    shared = [str(part) for pair in given.items() if pair[1] is not None for part in pair]
    pages: dict[str, Path] = {}
    for name, (module, covers) in EXPERIMENTS.items():
        print(f"\n{name}: {covers}", flush=True)
        pages[name] = execute(module.EXPERIMENT, [*shared, "--out", str(command.out / name)])
        index = _write_index(command.out, command.preset, pages)
    show(index, open_it=command.open)
    return index


def _write_index(out: Path, preset: str, pages: dict[str, Path]) -> Path:
    """A link per finished experiment, and the claims of all."""
    claims = [
        {"experiment": name, **claim}
        for name, page in pages.items()
        for claim in json.loads((page.parent / "claims.json").read_text())
    ]
    sections = [
        Section(name, EXPERIMENTS[name][1], link=f"{name}/{page.name}")
        for name, page in pages.items()
    ]
    return report.write(
        report.Page(
            title="Peck 2017: all experiments",
            lead=f"{study.SCALES[preset]} {study.ABOUT}",
            sections=(*sections, Section("Every claim", "", table=pd.DataFrame(claims))),
            settings={"preset": preset},
            versions=versions(),
        ),
        out / "report.html",
    )


if __name__ == "__main__":
    run(main)
