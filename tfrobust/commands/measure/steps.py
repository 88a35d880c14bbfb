"""`tfrobust measure`'s steps: alignment, attack, decomposition, saliency; each computed once."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tfrobust import alignment, attacks, distribution
from tfrobust.alignment import decompose
from tfrobust.commands.measure.page import write_page
from tfrobust.commands.measure.results import Measured, prepare
from tfrobust.commands.measure.settings import Command, Resolved
from tfrobust.commands.subject import Subject
from tfrobust.commands.terminal import show
from tfrobust.distribution import is_chief
from tfrobust.errors import InexactDecompositionWarning
from tfrobust.report import Run
from tfrobust.saliency import input_gradient

__all__ = ["measure", "steps"]


def measure(command: Command) -> None:
    """Run or resume all steps, write the page, print its address."""
    with distribution.strategy(command.strategy).scope():
        settings, subject = prepare(command)
        run = Run(command.out or Path("runs") / f"measure-{subject.name}", settings)
        page = run.folder / "report.html"
        if run.has(page.name):
            print(f"measured before; without {page.name} the page would be drawn again")
        else:
            measured = steps(run, settings, subject)
            if is_chief():
                write_page(run, settings, subject, measured)
        if is_chief():
            show(page, open_it=command.open)


def steps(run: Run, settings: Resolved, subject: Subject) -> Measured:
    """All that the page shows: finished steps from the run folder, the others computed and kept."""
    model, x = subject.model, subject.x

    def with_files(table: pd.DataFrame) -> pd.DataFrame:
        table.insert(0, "file", subject.files[: len(table)])
        return table

    def measured() -> pd.DataFrame:
        print(f"{subject.name}: alignment of {len(x)} images")
        result = alignment.measure(
            model,
            x,
            search=settings.search,
            directions=settings.directions,
            failure_probability=settings.failure_probability,
            seed=settings.seed,
            batch_size=settings.batch_size,
        )
        return with_files(result.to_frame())

    def attacked() -> pd.DataFrame:
        print(f"{subject.name}: attack {settings.attack} on {len(x[: settings.attacked])} images")
        result = attacks.minimal(
            model,
            x[: settings.attacked],
            settings.attack,
            value_range=subject.preprocessing.value_range,
            batch_size=settings.batch_size,
        )
        return with_files(result.to_frame())

    def decomposed() -> dict[str, Any]:
        # the same images as `alignment.measure` checks before it warns
        first = x[: settings.batch_size]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", InexactDecompositionWarning)
            errors = decompose(model, first, batch_size=settings.batch_size).relative_error
        inexact = [w.message for w in caught if isinstance(w.message, InexactDecompositionWarning)]
        return {
            "images": len(first),
            "largest": float(errors.max()),
            "median": float(np.median(errors)),
            "warning": " ".join(map(str, inexact)),
        }

    table = run.frame_step("images.parquet", measured)
    attack = None
    if settings.attack != "none":
        attack = run.frame_step("attack.parquet", attacked)

    def gradients() -> dict[str, np.ndarray]:
        order = np.argsort(table["linearized_robustness"].to_numpy(), kind="stable")
        count = min(settings.pictured, len(order))
        rows = order[np.linspace(0, len(order) - 1, count).round().astype(int)]
        chosen = x[rows], table["predicted"].to_numpy()[rows]
        return {
            "rows": rows,
            "gradients": input_gradient(model, *chosen, batch_size=settings.batch_size),
        }

    saliency = None
    if settings.pictured:
        saliency = run.arrays_step("saliency.npz", gradients)
    return Measured(table, attack, saliency, run.json_step("decomposition.json", decomposed))
