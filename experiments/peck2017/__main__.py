"""All experiments of Peck 2017 in one folder, with a page that links theirs.

    python -m experiments.peck2017 --preset demo [--out FOLDER] [--data-dir FOLDER]

Settings of a single experiment are set by its own module; this one takes a preset only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from experiments import cli
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


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run every experiment; the index page's path."""
    parser = argparse.ArgumentParser(prog="experiments.peck2017", description=__doc__)
    parser.add_argument("--preset", choices=list(study.SCALES), default="demo")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--open", action="store_true")
    command = parser.parse_args(arguments)
    out = command.out or Path("runs") / f"peck2017-{command.preset}"
    rows, sections = [], []
    for name, (module, covers) in EXPERIMENTS.items():
        print(f"\n{name}: {covers}", flush=True)
        given = ["--preset", command.preset, "--out", str(out / name)]
        if command.data_dir is not None:
            given += ["--data-dir", str(command.data_dir)]
        page = module.main(given)
        judged = json.loads((page.parent / "claims.json").read_text())
        for claim in judged:
            rows.append({"experiment": name, **claim})
        sections.append(Section(name, covers, link=page.relative_to(out).as_posix()))
    table = pd.DataFrame(rows)
    index = report.write(
        report.Page(
            title="Peck 2017: all experiments",
            lead=f"{study.SCALES[command.preset]} {study.ABOUT}",
            sections=(*sections, Section("Every claim", "", table=table)),
            settings={"preset": command.preset},
            versions=versions(),
        ),
        out / "report.html",
    )
    cli.show(index, open_it=command.open)
    return index


if __name__ == "__main__":
    cli.run(main)
