"""Alignment, linearized robustness and saliency of any checkpoint on any images, as a page.

    python -m experiments.measure --model keras_applications:MobileNetV2 --images FOLDER
    python -m experiments.measure --model resnet50 --weights resnet50.weights.h5 --images FOLDER
    python -m experiments.measure --model mine.keras --preprocessing unit --images FOLDER

Measures are those of Etmann 2019. Every step is kept in the run folder and computed once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import tyro

from experiments import cli
from experiments.measure_page import write_page
from experiments.measure_subject import Measured, Resolved, Settings, Subject, prepare
from tfrobust import alignment, attacks, decompose, distribution
from tfrobust.classifier import input_gradient
from tfrobust.distribution import is_chief
from tfrobust.report import Run


@dataclasses.dataclass(frozen=True)
class Command(Settings):
    """Measure a checkpoint on images: alignment, linearized robustness, saliency."""

    out: Path | None = None
    """Folder of the results; default: runs/measure-MODEL."""
    strategy: Literal["auto", "one", "mirrored", "multi_worker"] = "auto"
    """One device, all GPUs of this host, or several hosts."""
    open: bool = False
    """Open the page at the end."""


def main(arguments: list[str] | None = None) -> None:
    """Measure from the command line.

    Raises:
        SystemExit: settings that make no sense, or that do not go together, with a message.
    """
    command = tyro.cli(Command, prog="experiments.measure", args=arguments)
    with _mendable():
        devices = distribution.strategy(command.strategy)
    with devices.scope():
        with _mendable():
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
            cli.show(page, open_it=command.open)


@contextlib.contextmanager
def _mendable() -> Iterator[None]:
    """Nothing is computed inside yet: whatever does not fit is the user's to mend, in one line."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise SystemExit(f"error: {error}") from error


def steps(run: Run, settings: Resolved, subject: Subject) -> Measured:
    """All that the page shows, from the run folder where finished, else made and written there."""
    model, x = subject.model, subject.x

    def named(table: pd.DataFrame) -> pd.DataFrame:
        table.insert(0, "file", subject.files[: len(table)])
        return table

    def measured() -> pd.DataFrame:
        print(f"{subject.name}: alignment of {len(x)} images")
        found = alignment.measure(
            model,
            x,
            search=settings.search,
            directions=settings.directions,
            failure_probability=settings.failure_probability,
            seed=settings.seed,
            batch_size=settings.batch_size,
        )
        return named(found.to_frame())

    def attacked() -> pd.DataFrame:
        print(f"{subject.name}: attack {settings.attack} on {len(x[: settings.attacked])} images")
        found = attacks.minimal(
            model,
            x[: settings.attacked],
            settings.attack,
            value_range=subject.preprocessing.value_range,
            batch_size=settings.batch_size,
        )
        return named(found.to_frame())

    def decomposed() -> dict[str, Any]:
        # the very images that `measure` looks at before it warns
        first = x[: settings.batch_size]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            errors = decompose(model, first, batch_size=settings.batch_size).relative_error
        words = [str(each.message) for each in caught if each.category is UserWarning]
        return {
            "images": len(first),
            "largest": float(errors.max()),
            "median": float(np.median(errors)),
            "warning": " ".join(words),
        }

    table = run.frame_step("images.parquet", measured)
    attack = None
    if settings.attack != "none":
        attack = run.frame_step("attack.parquet", attacked)

    def pictured() -> dict[str, np.ndarray]:
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
        saliency = run.arrays_step("saliency.npz", pictured)
    return Measured(table, attack, saliency, run.json_step("decomposition.json", decomposed))


if __name__ == "__main__":
    from experiments.measure import main as importable_main

    cli.run(importable_main)
