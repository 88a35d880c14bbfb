"""Rank saved models by how robust they are, three ways (Peck 2017's use case: model selection).

    python -m experiments.rank first.keras second.keras third.keras --data mnist

By certified bound (a proof), linearized robustness (Etmann 2019, eq. (9)) and the distance that an
attack needs. A model is a .keras file or, with its own weights, a name that `reference_models`
knows. Every step is kept in the run folder and computed once.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Annotated

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tyro
from scipy.stats import spearmanr

import reference_models
from experiments import cli
from tfrobust import alignment, attacks, bounds, data, predict_logits, report
from tfrobust.batches import as_images, model_input_shape
from tfrobust.report import Claim, Section
from tfrobust.runs import Run

# column of the images' tables, words, and what it is
MEASURES = {
    "certified_bound": "certified bound",
    "linearized_robustness": "linearized robustness ρ~",
    "attack_distance": "attack distance",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Rank saved models by certified bound, linearized robustness and attack distance."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Two or more .keras files."""
    data: str
    """A data set of `tfrobust.data`: digits, mnist, cifar10, iris, wine, spambase."""
    images: int = 200
    """The first so many test examples."""
    attack: str = "carlini_wagner"
    """Any attack of `tfrobust.attacks.minimal`."""
    batch_size: int = 100
    """Examples a call; bounds the memory."""


@dataclasses.dataclass(frozen=True)
class Identified(Settings):
    """Settings with what tells other weights from these."""

    sha256: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Command(Settings):
    """Rank saved models by certified bound, linearized robustness and attack distance."""

    data_dir: Path | None = None
    """Folder of prepared data sets; default: TFROBUST_DATA_DIR."""
    out: Path | None = None
    """Folder of the results; default: runs/rank-DATA."""
    open: bool = False
    """Open the page at the end."""


def main(arguments: list[str] | None = None) -> None:
    """Rank models from the command line.

    Raises:
        SystemExit: settings that make no sense, or do not go together, with a message.
    """
    command = tyro.cli(Command, prog="experiments.rank", args=arguments)
    try:
        names, models = _models(command.models)
        test = data.load(command.data, "test", command.data_dir)
        test = test.take(min(command.images, len(test)))
        for name, model in zip(names, models, strict=True):
            _check(name, model, test)
    except (ValueError, TypeError) as error:
        raise SystemExit(f"error: {error}") from error
    fields = {f.name: getattr(command, f.name) for f in dataclasses.fields(Settings)}
    settings = Identified(**fields, sha256=tuple(_digest(model) for model in models))
    run = Run(command.out or Path("runs") / f"rank-{command.data}", settings)
    tables = {
        name: run.frame_step(
            f"{name}.parquet",
            lambda name=name, model=model: measured(name, model, test, settings),
        )
        for name, model in zip(names, models, strict=True)
    }
    accuracy = run.json_step("accuracy.json", lambda: _accuracies(names, models, test))
    table = ranking(tables, accuracy)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    page = write_page(run, settings, test, tables, table)
    cli.show(page, open_it=command.open)


def _models(paths: tuple[str, ...]) -> tuple[list[str], list[keras.Model]]:
    if len(paths) < 2:
        raise ValueError("one model cannot be ranked: give two or more .keras files")
    names = [Path(path).stem for path in paths]
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:  # runs of cohorts hold files of one name in many folders
        names = [f"{Path(path).parent.name}-{Path(path).stem}" for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"two of the models have one name: {', '.join(doubles)}")
    return names, [reference_models.load(path) for path in paths]


def _check(name: str, model: keras.Model, test: data.Dataset) -> None:
    """Raises: ValueError where a model does not take the data, before anything is computed."""
    try:
        rows = as_images(model, test.images[:2])
        classes = predict_logits(model, rows).shape[1]
    except ValueError as error:
        raise ValueError(
            f"model {name} does not go with {test.provenance.name}: {error}"
        ) from error
    if classes != test.classes:
        raise ValueError(
            f"model {name} has {classes} classes, {test.provenance.name} has {test.classes} (input "
            f"{model_input_shape(model)})"
        )


def _digest(model: keras.Model) -> str:
    digest = hashlib.sha256(model.to_json().encode())
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight).data)
    return digest.hexdigest()


def _accuracies(
    names: list[str], models: list[keras.Model], test: data.Dataset
) -> dict[str, float]:
    return {
        name: float(np.mean(predict_logits(model, test.images).argmax(axis=1) == test.labels))
        for name, model in zip(names, models, strict=True)
    }


def measured(name: str, model: keras.Model, test: data.Dataset, settings: Settings) -> pd.DataFrame:
    """One row an example: the three measures of one model, all in l2."""
    x, size = test.images, settings.batch_size
    print(f"{name}: certified bounds")
    bound = bounds.robustness(model, x, batch_size=size)
    print(f"{name}: linearized robustness")
    linear = alignment.measure(model, x, batch_size=size).linearized_robustness
    print(f"{name}: attack {settings.attack}")
    attacked = attacks.minimal(
        model, x, settings.attack, value_range=test.value_range, batch_size=size
    )
    return pd.DataFrame(
        {
            "label": test.labels,
            "predicted": bound.predicted,
            "certified_bound": bound.bound.astype(np.float64),
            "linearized_robustness": linear.astype(np.float64),
            # what the attack did not find is no distance
            "attack_distance": np.where(attacked.success, attacked.distance, np.nan),
            "tightened": bound.tightened,
        }
    )


def ranking(tables: dict[str, pd.DataFrame], accuracy: dict[str, float]) -> pd.DataFrame:
    """One row a model, best certified bound first: medians, and the rank in each measure.

    Medians leave out what is not finite; models with equal medians share the better rank, and one
    without a median comes last.
    """
    rows = []
    for name, table in tables.items():
        row = {"model": name, "accuracy": accuracy[name]}
        for column, words in MEASURES.items():
            values = table[column].to_numpy()
            values = values[np.isfinite(values)]
            row[words] = float(np.median(values)) if len(values) else float("nan")
        row["attack success"] = f"{table['attack_distance'].notna().mean():.1%}"
        row["violations"] = violations(table)
        rows.append(row)
    result = pd.DataFrame(rows)
    for words in MEASURES.values():
        place = result[words].rank(method="min", ascending=False, na_option="bottom")
        result[f"rank by {words}"] = place.astype(int)
    order = [f"rank by {words}" for words in MEASURES.values()]
    return result.sort_values(order, kind="stable", ignore_index=True)


def violations(table: pd.DataFrame) -> int:
    """Examples whose attack came closer than the certified bound: none, if it is one."""
    return int((table["attack_distance"] < table["certified_bound"]).sum())


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of the medians, for each pair of measures."""
    words = list(MEASURES.values())
    rows = []
    for number, first in enumerate(words):
        for second in words[number + 1 :]:
            both = table[[first, second]].dropna()
            enough = len(both) > 2 and both[first].nunique() > 1 and both[second].nunique() > 1
            value = float(spearmanr(both[first], both[second]).statistic) if enough else np.nan
            rows.append({"between": first, "and": second, "Spearman": value, "models": len(both)})
    return pd.DataFrame(rows)


def write_page(
    run: Run,
    settings: Settings,
    test: data.Dataset,
    tables: dict[str, pd.DataFrame],
    table: pd.DataFrame,
) -> Path:
    """Write `ranking.csv`, the figure and `report.html`; the page's path.

    Raises:
        OSError: a file could not be written.
    """
    with run.writing("ranking.csv") as path:
        table.to_csv(path, index=False)
    broken = int(table["violations"].sum())
    count = sum(len(each) for each in tables.values())
    loose = [name for name, each in tables.items() if not each["tightened"].all()]
    claim = Claim(
        statement="No attack comes closer than the certified bound",
        verdict="not held" if broken else "held",
        figure=f"{broken} violations in {count} examples",
        source="certified rules",
    )
    about = (
        "Medians over the examples, l2, in the networks' input units, over what is finite; an "
        "attack that found nothing is left out of its median and counted as not successful. Equal "
        "medians share a rank."
    )
    if loose:
        about += f" Certified by norms alone, not tightened: {', '.join(loose)}."
    page = report.Page(
        title=f"{len(tables)} models ranked on {test.provenance.name}",
        lead=f"The first {len(test):,} test examples of {test.provenance.source}; distances to the "
        f"nearest other class than the predicted one, attack: {settings.attack}.",
        sections=(
            Section("Ranking", about, table=table),
            Section(
                "Do the rankings agree?",
                "Spearman's rank correlation of the medians; empty with fewer than three models.",
                table=correlations(table),
            ),
            Section(
                "Distributions",
                "Medians (dots) and quartiles (bars) of the three measures, best certified bound "
                "on top. A certified bound is below every attack; between them lies the true "
                "distance.",
                figure=draw(tables, list(table["model"]), run.path("figures/ranking.png")),
            ),
        ),
        claims=(claim,),
        settings={**run.record["settings"], "started": run.record["started"]},
        versions=run.record["versions"],
    )
    return report.write(page, run.folder / "report.html")


def draw(tables: dict[str, pd.DataFrame], order: list[str], path: Path) -> Path:
    """Medians and quartiles of every model, from best to worst."""
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.5 * len(order)), layout="constrained")
    places = np.arange(len(order))[::-1]
    for shift, (column, words) in zip((0.2, 0, -0.2), MEASURES.items(), strict=True):
        quartiles = np.full((len(order), 3), np.nan)
        for row, name in enumerate(order):
            values = tables[name][column].to_numpy()
            values = values[np.isfinite(values) & (values > 0)]
            if len(values):
                quartiles[row] = np.percentile(values, (25, 50, 75))
        spread = np.abs(quartiles[:, [1]] - quartiles[:, [0, 2]]).T
        axes.errorbar(quartiles[:, 1], places + shift, xerr=spread, fmt="o", capsize=3, label=words)
    axes.set(xscale="log", xlabel="l2 distance", yticks=places, yticklabels=order)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


if __name__ == "__main__":
    from experiments.rank import main as importable_main

    cli.run(importable_main)
