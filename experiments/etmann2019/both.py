"""Both halves of Etmann 2019 side by side: ImageNet left, MNIST right.

    python -m experiments.etmann2019.both --imagenet RUN --mnist RUN --out FOLDER

RUN is a finished run folder of `experiments.etmann2019.imagenet` and of `.mnist`; nothing is
computed again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from experiments.common.page import draw
from experiments.etmann2019 import claims, figures
from experiments.etmann2019.page import ABOUT_TABLE, about_models, models_table
from experiments.etmann2019.results import Cohort, CohortError, read
from tfrobust import report
from tfrobust.commands import run, show
from tfrobust.files import writable_folder
from tfrobust.report import Claim, Section


@dataclasses.dataclass(frozen=True)
class Command:
    """Figures 2 to 10 of Etmann 2019 with ImageNet left and MNIST right, and a page of both."""

    imagenet: Path
    """Folder of a finished run of experiments.etmann2019.imagenet."""
    mnist: Path
    """Folder of a finished run of experiments.etmann2019.mnist."""
    out: Path
    """Folder of the page and its figures."""
    open: bool = False
    """Open the page at the end."""


def main(arguments: list[str] | None = None) -> None:
    """Draw both halves from the command line.

    Raises:
        SystemExit: unknown or missing arguments, with a message.
        CohortError: a folder that holds no finished run, or the wrong one.
        RunFolderError: a file of a run is damaged; names it.
        OSError: the folder cannot be written to.
    """
    command = tyro.cli(Command, prog="experiments.etmann2019.both", args=arguments)
    cohorts = read_both(command.imagenet, command.mnist)
    if (command.out / "run.json").exists():
        raise CohortError(
            f"{command.out} holds a run, whose page would be lost: give --out another folder"
        )
    show(write_page(command.out, *cohorts), open_it=command.open)


def read_both(imagenet: Path, mnist: Path) -> tuple[Cohort, Cohort]:
    """The two finished cohorts.

    Raises:
        CohortError: a folder holds no finished cohort, or one of the other half.
    """
    left, right = read(imagenet), read(mnist)
    if not figures.is_imagenet(left) and figures.is_imagenet(right):
        raise CohortError(
            f"the two runs are the wrong way round: {imagenet} is on {left.name}, {mnist} on "
            f"{right.name}. Swap --imagenet and --mnist."
        )
    if not figures.is_imagenet(left):
        raise CohortError(f"{imagenet} is a run on {left.name}: give --imagenet one on ImageNet")
    if figures.is_imagenet(right):
        raise CohortError(f"{mnist} is a run on {right.name}: give --mnist one on MNIST or digits")
    return left, right


def write_page(folder: Path, imagenet: Cohort, mnist: Cohort) -> Path:
    """Draw Figures 2 to 10, judge the claims of either half and write `report.html`; its path.

    Args:
        folder: made if need be.
        imagenet: drawn left.
        mnist: drawn right.

    Raises:
        OSError: a file could not be written.
    """
    cohorts = imagenet, mnist
    writable_folder(folder)
    drawn = draw(figures.drawings(cohorts), folder / "figures")
    page = report.Page(
        title=f"Etmann 2019 on {imagenet.name} and {mnist.name}",
        lead=" ".join(f"{cohort.name}: {cohort.lead}" for cohort in cohorts),
        sections=(*map(_models, cohorts), *drawn),
        claims=_claims(cohorts),
        settings=_named(cohorts, [{**c.settings, "started": c.record["started"]} for c in cohorts]),
        versions=_named(cohorts, [cohort.record["versions"] for cohort in cohorts]),
    )
    return report.write(page, folder / "report.html")


def _models(cohort: Cohort) -> Section:
    return Section(
        f"Every model: {cohort.name}",
        f"{about_models(cohort)} {ABOUT_TABLE}",
        table=models_table(cohort.members),
    )


def _claims(cohorts: Sequence[Cohort]) -> tuple[Claim, ...]:
    """Those of the first, then those of the second, each under the name of its data."""
    return tuple(
        dataclasses.replace(claim, statement=f"{cohort.name}: {claim.statement}")
        for cohort in cohorts
        for claim in claims.judge(cohort.members, saturates=not figures.is_imagenet(cohort))
    )


def _named(cohorts: Sequence[Cohort], entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        f"{cohort.name}: {name}": value
        for cohort, values in zip(cohorts, entries, strict=True)
        for name, value in values.items()
    }


if __name__ == "__main__":
    from experiments.etmann2019.both import main as imported_main

    run(imported_main)
