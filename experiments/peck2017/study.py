"""What all experiments on Peck 2017 share: the command line, trained networks, the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import pandas as pd

import reference_models
from experiments import cli
from tfrobust import data, report, training
from tfrobust.errors import InputError
from tfrobust.objectives import CrossEntropy
from tfrobust.report import Claim, Run, Section

__all__ = ["ABOUT", "execute", "finish", "trained"]

SCALES = {
    "demo": "Demonstration on bundled data, far smaller than the study.",
    "reduced": "Scaled-down run.",
    "paper": "The study's own settings, as far as they are known.",
}
ABOUT = (
    "l2 norms in the networks' input units; attacks leave the model's own prediction; failed "
    "attacks are left out. A violation is an example that some attack changed with less than the "
    "bound. Published figures were not at hand (experiments/peck2017/published.py)."
)


def execute(
    name: str,
    presets: Mapping[str, Any],
    make: Callable[[Run, Any, str, Path | None], Path],
    check: Callable[[Any, Path | None], None],
    arguments: Sequence[str] | None = None,
    *,
    files: Sequence[str] = (),
) -> Path:
    """Read the command line, go through the steps, show the page; the page's path.

    Args:
        name: of the experiment.
        presets: settings by name.
        make: run, settings, preset and data folder to the page's path.
        check: raises InputError for settings that make no sense; comes before anything is written,
            so that the corrected command finds no run with other settings.
        arguments: the command line; sys.argv where None.
        files: settings that name a file, or None, whose contents the results depend on.

    Raises:
        SystemExit: a setting that makes no sense, with a message.
        RunFolderError: the folder holds a run with other settings, or of files that have changed.
        ModelFileError, DataNotFoundError: a model or data that are not there.
    """
    command = cli.parse(presets, f"peck2017-{name}", arguments)
    try:
        if command.scheduler or command.strategy not in ("auto", "one"):
            raise InputError(
                "these experiments are small and run on one device: leave out "
                "--strategy and --scheduler"
            )
        check(command.settings, command.data_dir)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    given = {field: getattr(command.settings, field) for field in files}
    given = {field: path for field, path in given.items() if path is not None}
    run = Run(command.out, command.settings, given)
    page = make(run, command.settings, command.preset, command.data_dir)
    cli.show(page, open_it=command.open)
    return page


def trained(
    run: Run,
    place: str,
    build: Callable[[], keras.Model],
    train: data.Dataset,
    *,
    iterations: int,
    batch_size: int,
    learning_rate: float = 1e-3,
    seed: int = 0,
    objective: Any = None,
    validation: data.Dataset | None = None,
) -> keras.Model:
    """A network trained with Adam, loaded where it is finished, else from where it stopped.

    Iterations are rounded up to whole epochs.
    """
    file = f"{place}/model.keras"
    if run.has(file):
        return reference_models.load(run.folder / file)
    keras.utils.set_random_seed(seed)
    model = build()
    epochs = math.ceil(iterations / max(len(train) // batch_size, 1))
    print(f"{place}: {model.name}, {epochs} epochs on {train.provenance.name}", flush=True)
    objective = CrossEntropy() if objective is None else objective
    history = training.fit(
        model,
        train.arrays,
        objective,
        optimizer=keras.optimizers.Adam(learning_rate),
        epochs=epochs,
        batch_size=batch_size,
        validation=validation.arrays if validation is not None else None,
        folder=run.folder / place / "training",
        seed=seed,
    )
    run.write_json(f"{place}/history.json", list(history.records))
    reference_models.save(
        model,
        run.path(file),
        provenance={
            "objective": objective.describe() if hasattr(objective, "describe") else str(objective),
            "iterations": iterations,
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "seed": seed,
            "data": vars(train.provenance),
        },
    )
    return model


def finish(
    run: Run,
    preset: str,
    *,
    title: str,
    lead: str,
    tables: Mapping[str, tuple[str, pd.DataFrame]],
    drawn: Mapping[str, tuple[str, Path]],
    judged: Sequence[Claim],
) -> Path:
    """Write tables, claims and `report.html`; the page's path."""
    for name, (_, table) in tables.items():
        with run.writing(f"{name.lower().replace(' ', '_')}.csv") as path:
            table.to_csv(path, index=False)
    run.write_json("claims.json", [vars(claim) for claim in judged])
    record = run.record
    page = report.Page(
        title=f"Peck 2017: {title}",
        lead=f"{SCALES[preset]} {lead}",
        sections=(
            *(Section(name, text, table=table) for name, (text, table) in tables.items()),
            *(Section(name, text, figure=path) for name, (text, path) in drawn.items()),
        ),
        claims=tuple(judged),
        settings={"preset": preset, **record["settings"], "started": record["started"]},
        versions=record["versions"],
    )
    return report.write(page, run.folder / "report.html")
