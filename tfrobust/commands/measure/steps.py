"""`tfrobust measure`'s steps: alignment, attack, saliency; each computed once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from tfrobust import alignment, attacks, distribution
from tfrobust.commands.measure.page import write_page
from tfrobust.commands.measure.results import Measured, prepare
from tfrobust.commands.measure.settings import Command, Resolved
from tfrobust.commands.subject import Subject
from tfrobust.commands.terminal import show
from tfrobust.distribution import is_chief
from tfrobust.report import Run
from tfrobust.saliency import input_gradient

__all__ = ["measure", "steps"]

_DRAWN = "page.json"


def measure(command: Command) -> None:
    """Run or resume all steps, write the page, print its address."""
    with distribution.strategy(command.strategy).scope():
        settings, subject = prepare(command)
        run = Run(command.out or Path("runs") / f"measure-{subject.name}", settings)
        page = run.folder / "report.html"
        # the page itself does not say which settings it is of
        if run.has(page.name) and run.has(_DRAWN) and run.read_json(_DRAWN):
            print(f"measured before; without {page.name} the page would be drawn again")
        else:
            measured = steps(run, settings, subject)
            if is_chief():
                write_page(run, settings, subject, measured)
            run.write_json(_DRAWN, {"page": page.name})
        if is_chief():
            show(page, open_it=command.open)


def steps(run: Run, settings: Resolved, subject: Subject) -> Measured:
    """All results that the page shows; finished steps are read from the run folder."""
    table = run.frame_step("images.parquet", lambda: _alignment(settings, subject))
    attack = None
    if settings.attack != "none":
        attack = run.frame_step("attack.parquet", lambda: _attack(settings, subject))
    saliency = None
    if settings.pictured:
        saliency = run.arrays_step("saliency.npz", lambda: _saliency(settings, subject, table))
    return Measured(table, attack, saliency)


def _with_files(table: pd.DataFrame, subject: Subject) -> pd.DataFrame:
    table.insert(0, "file", subject.files[: len(table)])
    return table


def _alignment(settings: Resolved, subject: Subject) -> pd.DataFrame:
    print(f"{subject.name}: alignment of {len(subject.x)} images")
    result = alignment.measure(
        subject.model,
        subject.x,
        search=settings.search,
        directions=settings.directions,
        failure_probability=settings.failure_probability,
        seed=settings.seed,
        batch_size=settings.batch_size,
    )
    return _with_files(result.to_frame(), subject)


def _attack(settings: Resolved, subject: Subject) -> pd.DataFrame:
    x = subject.x[: settings.attacked]
    print(f"{subject.name}: attack {settings.attack} on {len(x)} images")
    result = attacks.minimal(
        subject.model,
        x,
        settings.attack,
        value_range=subject.preprocessing.value_range,
        batch_size=settings.batch_size,
    )
    return _with_files(result.to_frame(), subject)


def _saliency(settings: Resolved, subject: Subject, table: pd.DataFrame) -> dict[str, np.ndarray]:
    order = np.argsort(table["linearized_robustness"].to_numpy(), kind="stable")
    count = min(settings.pictured, len(order))
    rows = order[np.linspace(0, len(order) - 1, count).round().astype(int)]
    classes = table["predicted"].to_numpy()[rows]
    gradients = input_gradient(
        subject.model, subject.x[rows], classes, batch_size=settings.batch_size
    )
    return {"rows": rows, "gradients": gradients}
