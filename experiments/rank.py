"""Rank saved models by how robust they are, three ways (Peck 2017's use case: model selection).

    python -m experiments.rank first.keras second.keras third.keras --data mnist

By certified bound (a proof), linearized robustness (Etmann 2019, eq. (9)) and the distance that an
attack needs. Every step is kept in the run folder and computed once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tyro
from scipy.stats import spearmanr

import reference_models
from experiments import cli
from tfrobust import alignment, attacks, bounds, data, predict_logits, report
from tfrobust.attacks import prepare
from tfrobust.classifier import as_images, model_input_shape
from tfrobust.errors import InputError, TfrobustError
from tfrobust.report import Claim, Run, Section

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
    attack: str | None = None
    """Any attack of `tfrobust.attacks.minimal`; default: carlini_wagner for images, deepfool for
    tables, in whose wide boxes Carlini-Wagner is coarse."""
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
        SystemExit: settings that make no sense, or do not go together, a model or data that are
            not there, or a run folder of other settings, with a message. Whatever can be checked
            cheaply is, before anything is computed.
    """
    command = tyro.cli(Command, prog="experiments.rank", args=arguments)
    try:
        page = _ranked(command)
    except (TfrobustError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    cli.show(page, open_it=command.open)


def _ranked(command: Command) -> Path:
    """All checks and steps; the page's path."""
    try:
        if command.batch_size < 1:
            raise InputError(f"--batch-size must be at least 1, got {command.batch_size}")
        if command.images < 1:
            raise InputError(f"--images must be at least 1, got {command.images}")
        names, models = _models(command.models)
        test = data.load(command.data, "test", command.data_dir)
        test = test.take(min(command.images, len(test)))
        attack = command.attack or ("deepfool" if _tabular(test) else "carlini_wagner")
        for name, model in zip(names, models, strict=True):
            _check(name, model, test, attack)
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from error
    fields = {f.name: getattr(command, f.name) for f in dataclasses.fields(Settings)}
    digests = tuple(_digest(model) for model in models)
    settings = Identified(**{**fields, "attack": attack}, sha256=digests)
    run = Run(command.out or Path("runs") / f"rank-{command.data}", settings)
    tables = {
        name: measured(run, name, model, test, settings)
        for name, model in zip(names, models, strict=True)
    }
    accuracy = run.json_step("accuracy.json", lambda: _accuracies(names, models, test))
    table = ranking(tables, accuracy)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    return write_page(run, settings, test, tables, table, given=command.attack is not None)


def _tabular(test: data.Dataset) -> bool:
    return test.images.ndim == 2


def _models(paths: tuple[str, ...]) -> tuple[list[str], list[keras.Model]]:
    if len(paths) < 2:
        raise InputError("one model cannot be ranked: give two or more .keras files")
    names = [Path(path).stem for path in paths]
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:  # runs of cohorts hold files of one name in many folders
        names = [f"{Path(path).resolve().parent.name}-{Path(path).stem}" for path in paths]
        doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise InputError(
            f"two of the models have one name and folder name, {', '.join(doubles)}, which tell "
            "models apart: rename one of the files, or put it into a folder of another name"
        )
    return names, [reference_models.load(path) for path in paths]


def _check(name: str, model: keras.Model, test: data.Dataset, attack: str) -> None:
    """Raises: ValueError where a step would fail on a model, before anything is computed."""
    for variable in model.variables:
        if not np.isfinite(variable.numpy()).all():
            raise InputError(f"model {name}: {variable.path} holds NaN or infinite values")
    try:
        rows = as_images(model, test.images[:1])
        classes = predict_logits(model, rows).shape[1]
    except ValueError as error:
        raise InputError(
            f"model {name} does not go with {test.provenance.name}: {error}"
        ) from error
    if classes != test.classes:
        raise InputError(
            f"model {name} has {classes} classes, {test.provenance.name} has {test.classes} (input "
            f"{model_input_shape(model)})"
        )
    try:
        bounds.robustness(model, rows, tighten=False)
        prepare(attack, model, rows, value_range=test.value_range, norm=2, settings={})
    except (ValueError, TypeError) as error:  # a layer without a rule, an unknown attack
        raise InputError(f"model {name}: {error}") from error


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


def measured(
    run: Run, name: str, model: keras.Model, test: data.Dataset, settings: Settings
) -> pd.DataFrame:
    """One row an example: the three measures of one model, all in l2, each a step of its own.

    Distances and bounds are infinite where the attack found nothing, or nothing can change the
    class.
    """
    x, size = test.images, settings.batch_size

    def bounded() -> dict[str, np.ndarray]:
        found = bounds.robustness(model, x, batch_size=size)
        return {
            "label": test.labels,
            "predicted": found.predicted,
            "certified_bound": found.bound.astype(np.float64),
            "tightened": np.full(len(x), found.tightened),
        }

    def linearized() -> dict[str, np.ndarray]:
        with warnings.catch_warnings():
            if _tabular(test):  # Peck's perceptrons: Theorem 1 of Etmann 2019 is not used here
                warnings.filterwarnings("ignore", "the homogeneous decomposition is not exact")
            found = alignment.measure(model, x, batch_size=size)
        return {"linearized_robustness": found.linearized_robustness.astype(np.float64)}

    def attacked() -> dict[str, np.ndarray]:
        found = attacks.minimal(
            model, x, settings.attack, value_range=test.value_range, batch_size=size
        )
        return {"attack_distance": found.distance.astype(np.float64)}

    steps: dict[str, tuple[str, Callable[[], dict[str, np.ndarray]]]] = {
        "bounds": ("certified bounds", bounded),
        "linearized": ("linearized robustness", linearized),
        "attack": (f"attack {settings.attack}", attacked),
    }
    parts = []
    for step, (words, make) in steps.items():

        def told(words: str = words, make: Callable[[], Any] = make) -> pd.DataFrame:
            print(f"{name}: {words}", flush=True)
            return pd.DataFrame(make())

        parts.append(run.frame_step(f"{name}/{step}.parquet", told))
    return pd.concat(parts, axis=1)


def ranking(tables: dict[str, pd.DataFrame], accuracy: dict[str, float]) -> pd.DataFrame:
    """One row a model, best certified bound first: medians, and the rank in each measure.

    Medians are over all examples: one that the attack did not change, or whose bound is infinite,
    counts as infinitely far, so that resisting an attack raises a model. Only what is undefined
    (NaN) is left out. Models with equal medians share the better rank; one without a median comes
    last.
    """
    rows = []
    for name, table in tables.items():
        row = {"model": name, "accuracy": accuracy[name]}
        for column, words in MEASURES.items():
            values = table[column].to_numpy()
            values = values[~np.isnan(values)]
            row[words] = float(np.median(values)) if len(values) else float("nan")
        row["attack success"] = f"{attacked(table).mean():.1%}"
        row["violations"] = violations(table)
        rows.append(row)
    result = pd.DataFrame(rows)
    for words in MEASURES.values():
        place = result[words].rank(method="min", ascending=False, na_option="bottom")
        result[f"rank by {words}"] = place.astype(int)
    order = [f"rank by {words}" for words in MEASURES.values()]
    return result.sort_values(order, kind="stable", ignore_index=True)


def attacked(table: pd.DataFrame) -> np.ndarray:
    """(examples,) bool: those that the attack changed, the only ones that can show a violation."""
    return np.isfinite(table["attack_distance"].to_numpy())


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
    *,
    given: bool,
) -> Path:
    """Write `ranking.csv`, the figure and `report.html`; the page's path.

    Args:
        run: the folder.
        settings: with the attack that was used.
        test: the examples.
        tables: of `measured`, by model.
        table: of `ranking`.
        given: whether the user named the attack.

    Raises:
        OSError: a file could not be written.
    """
    with run.writing("ranking.csv") as path:
        table.to_csv(path, index=False)
    broken = int(table["violations"].sum())
    examples = sum(len(each) for each in tables.values())
    count = sum(int(attacked(each).sum()) for each in tables.values())
    loose = [name for name, each in tables.items() if not each["tightened"].all()]
    claim = Claim(
        statement="No attack comes closer than the certified bound",
        verdict="not tested" if not count else "not held" if broken else "held",
        figure=f"{broken} violations in {count} attacked examples (of {examples})",
        source="certified rules",
    )
    kind = "tables" if _tabular(test) else "images"
    about = (
        "Medians over all examples, l2, in the networks' input units. An example that the attack "
        "did not change counts as infinitely far: inf is the median where it failed on half of "
        "them or more. Equal medians share a rank."
    )
    if loose:
        about += f" Certified by norms alone, not tightened: {', '.join(loose)}."
    page = report.Page(
        title=f"{len(tables)} models ranked on {test.provenance.name}",
        lead=f"The first {len(test):,} test examples of {test.provenance.source}; distances to the "
        f"nearest other class than the predicted one, attack: {settings.attack} "
        f"({'as given' if given else f'chosen for {kind}'}).",
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
    """Medians and quartiles of every model, from best to worst; infinite ones on a dotted line."""
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.5 * len(order)), layout="constrained")
    places = np.arange(len(order))[::-1]
    shown = {words: _quartiles(tables, order, column) for column, words in MEASURES.items()}
    finite = np.concatenate([each.ravel() for each in shown.values()])
    finite = finite[np.isfinite(finite) & (finite > 0)]
    edge = 3 * finite.max() if len(finite) else 1.0
    for shift, (words, quartiles) in zip((0.2, 0, -0.2), shown.items(), strict=True):
        low, middle, high = np.minimum(quartiles, edge).T
        middle = np.where(middle > 0, middle, np.nan)  # the axis is logarithmic
        spread = np.abs(np.stack([middle - low, high - middle]))
        axes.errorbar(middle, places + shift, xerr=spread, fmt="o", capsize=3, label=words)
    axes.set(xscale="log", xlabel="l2 distance", yticks=places, yticklabels=order)
    if any(np.isinf(each).any() for each in shown.values()):
        axes.axvline(edge, color="0.7", linewidth=0.8, linestyle=":")
        axes.set_xlabel("l2 distance (dotted line: infinite)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def _quartiles(tables: dict[str, pd.DataFrame], order: list[str], column: str) -> np.ndarray:
    """(models, 3): the first quartile, the median as in the table, the third."""
    result = np.full((len(order), 3), np.nan)
    for row, name in enumerate(order):
        values = tables[name][column].to_numpy(np.float64)
        values = values[~np.isnan(values)]
        if len(values):  # without interpolation, which makes NaN of two infinite values
            first, third = np.quantile(values, (0.25, 0.75), method="inverted_cdf")
            result[row] = first, np.median(values), third
    return result


if __name__ == "__main__":
    from experiments.rank import main as importable_main

    cli.run(importable_main)
