"""One builder of pages: tables, figures, claims and missing members of an experiment."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from experiments.common.claims import undecided
from experiments.common.members import Progress
from tfrobust import report
from tfrobust.files import atomic_path
from tfrobust.report import Claim, Run, Section, figures

__all__ = ["Drawing", "Report", "Table", "draw", "write_page"]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table under its title."""

    title: str
    text: str
    frame: pd.DataFrame
    file: str | None = None
    """Of the table as CSV; default: the title with underscores."""


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure that is drawn when the page needs it."""

    title: str
    text: str
    file: str
    """Of the PNG and the PDF, without their endings."""
    draw: Callable[[], Figure | Path]
    """Returns the figure, or the path of the PNG where it saved itself."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What an experiment shows of its results."""

    title: str
    lead: str
    tables: Sequence[Table]
    drawings: Sequence[Drawing]
    claims: Sequence[Claim]


def write_page(
    run: Run, preset: str, content: Report, progress: Progress, *, redraw: bool = True
) -> Path:
    """Write tables, claims and `report.html`; the page's path.

    While members are missing the page names them, and no claim is decided before all have finished
    or failed. Called by one worker only: nothing here waits for the others.

    Args:
        run: the run folder.
        preset: name of the preset that the settings started from.
        content: what is shown.
        progress: which members are finished, failed or pending.
        redraw: draw the figures; else those that an earlier call drew are taken.

    Raises:
        OSError: a file could not be written.
    """
    judged = tuple(content.claims)
    if progress.pending:
        judged = undecided(judged)
    for table in content.tables:
        file = table.file or table.title.lower().replace(" ", "_")
        with atomic_path(run.path(f"{file}.csv")) as path:
            table.frame.to_csv(path, index=False)
    with atomic_path(run.path("claims.json")) as path:
        path.write_text(json.dumps([vars(claim) for claim in judged], indent=2) + "\n")
    record = run.record
    page = report.Page(
        title=content.title,
        lead=content.lead,
        sections=(
            *_missing(progress),
            *(Section(table.title, table.text, table=table.frame) for table in content.tables),
            *draw(content.drawings, run.path("figures"), redraw=redraw),
        ),
        claims=judged,
        settings={"preset": preset, **record["settings"], "started": record["started"]},
        versions=record["versions"],
    )
    return report.write(page, run.path("report.html"))


def draw(drawings: Sequence[Drawing], folder: Path, *, redraw: bool = True) -> list[Section]:
    """A section per figure, as PNG and PDF in `folder`; without `redraw`, those that are there."""
    sections = []
    for drawing in drawings:
        path = folder / f"{drawing.file}.png"
        if redraw:
            with figures.style():
                drawn = drawing.draw()
                if isinstance(drawn, Figure):
                    figures.save(drawn, folder, drawing.file)
        if path.exists():
            sections.append(Section(drawing.title, drawing.text, figure=path))
    return sections


def _missing(progress: Progress) -> list[Section]:
    """The table of members that failed or are not finished, where there are any."""
    rows = [(member.name, "failed", reason) for member, reason in progress.failed]
    rows += [(member.name, "not finished", "") for member in progress.pending]
    if not rows:
        return []
    total = len(rows) + len(progress.finished)
    return [
        Section(
            "Missing from this page",
            f"{len(progress.finished)} of {total} are finished; figures and claims are of these.",
            table=pd.DataFrame(rows, columns=["name", "state", "reason"]),
        )
    ]
