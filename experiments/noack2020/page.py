"""The page of Tables 1 and 2: cells beside the published ones, target maps, Jacobian norms."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd

from experiments.common.experiment import Task
from experiments.common.page import Drawing, Report, Table
from experiments.noack2020 import claims, figures, study
from experiments.noack2020.rows import Row
from experiments.noack2020.table import Results
from experiments.noack2020.targets import reference_targets

__all__ = ["report"]

_SHOWN = 6
_TABLE = (
    "Mean accuracies on {count} test images in per cent, with the sample standard deviation over "
    "seeds; attacks: means over {restarts} restarts with the released code's floor on the "
    "gradient's norm. Published: the paper's cells."
)
_WORST = (
    "Per attack: mean over restarts and worst case, with the released code's floor on the "
    "gradient's norm and with a direction that does not underflow; zero: images whose gradient was "
    "zero at some step."
)


_NETWORKS = (
    "Means over seeds, accuracies in per cent. Epoch: chosen by validation accuracy; code: the "
    "epoch, and its accuracy, that the released code's rule chooses by test accuracy. Norms of the "
    "Jacobian's rows and cosine of J_c with the robust network's SmoothGrad maps, over training "
    "images."
)


def report(
    task: Task,
    found: Results,
    published: Mapping[str, Mapping[str, float]],
    *,
    title: str,
    table: str,
) -> Report:
    """Tables, figures and claims of the finished networks.

    Args:
        task: of the experiment.
        found: their results.
        published: cells by row and column, per cent.
        title: of the page.
        table: "Table 1".
    """
    settings = task.settings
    content = {"title": title, "lead": f"{study.SCALES[task.preset]} {study.ABOUT}"}
    if found.networks.empty:
        return Report(**content, tables=[], drawings=[], claims=[])
    attacks = found.attacks[found.attacks["floor"] == settings.floors[0]]
    rows = [name for name in settings.rows if name in set(found.networks["row"])]
    count = len(task.data["test"])
    return Report(
        **content,
        tables=[
            Table(
                table,
                _TABLE.format(count=count, restarts=settings.restarts),
                _cells(rows, found.networks, attacks, published),
            ),
            Table("Attacks", _WORST, _attacks(rows, found.attacks)),
            Table(
                "Networks",
                _NETWORKS,
                _networks(rows, found.networks),
            ),
        ],
        drawings=_drawings(task, found),
        claims=claims.table(found.networks, attacks, f"Section 4.5, {table}"),
    )


def _cells(
    rows: list[str],
    networks: pd.DataFrame,
    attacks: pd.DataFrame,
    published: Mapping[str, Mapping[str, float]],
) -> pd.DataFrame:
    """Rows of the paper's table, a column of ours and one of theirs per attack."""
    lines = []
    for row in rows:
        own = networks[networks["row"] == row]
        line = {"training": Row.of(row).label, "networks": len(own)}
        cells = {"standard": 100 * own["accuracy"]}
        for attack in dict.fromkeys(attacks["attack"]):
            cells[attack] = pd.Series(claims.mean_of(attacks, row, attack), dtype=float)
        for column, values in cells.items():
            line[column] = _with_spread(values)
            line[f"{column}, published"] = published.get(row, {}).get(column, np.nan)
        lines.append(line)
    return pd.DataFrame(lines).dropna(axis=1, how="all")


def _with_spread(values: pd.Series) -> str:
    spread = f" +- {values.std():.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{spread}" if len(values) else ""


def _attacks(rows: list[str], attacks: pd.DataFrame) -> pd.DataFrame:
    frame = attacks.assign(mean=100 * attacks["mean"], worst=100 * attacks["worst"])
    columns = ["mean", "worst", "zero_gradient"]
    means = frame.groupby(["row", "attack", "floor"], sort=False)[columns].mean()
    wide = means.unstack("floor")
    wide.columns = [f"{column.replace('_gradient', '')}, {floor}" for column, floor in wide.columns]
    order = {row: place for place, row in enumerate(rows)}
    wide = wide.reset_index().sort_values("row", key=lambda names: names.map(order), kind="stable")
    return wide.assign(row=[Row.of(row).label for row in wide["row"]])


def _networks(rows: list[str], networks: pd.DataFrame) -> pd.DataFrame:
    numbers = networks.drop(columns="seed").groupby("row").mean().loc[rows]
    shares = ["accuracy", "validation_accuracy", "code_accuracy"]
    numbers[shares] *= 100
    numbers.insert(0, "training", [Row.of(row).label for row in rows])
    return numbers.rename(columns=_COLUMNS).reset_index(drop=True)


_COLUMNS = {
    "accuracy": "test accuracy",
    "validation_accuracy": "validation accuracy",
    "validation_loss": "validation loss",
    "code_epoch": "epoch, code",
    "code_accuracy": "test accuracy, code",
    "label": "‖J_c‖",
    "others": "‖J_≠c‖",
    "whole": "‖J‖",
}


def _drawings(task: Task, found: Results) -> list[Drawing]:
    drawings = [
        Drawing(
            "Figure 4",
            "Mean Frobenius norms of the Jacobian's rows over training images; bars: standard "
            "deviation over seeds.",
            "figure4",
            partial(figures.norms, found.networks),
        )
    ]
    rows = [Row.of(name) for name in dict.fromkeys(found.networks["row"])]
    names = [row.name for row in rows if row.kind == "ir" and not row.permuted]
    if names:
        drawings.insert(
            0,
            Drawing(
                "Figure 1",
                "Training images and their thresholded target maps; grey is zero.",
                "figure1",
                partial(_maps, task, names),
            ),
        )
    return drawings


def _maps(task: Task, names: list[str]) -> object:
    """One image per class, as far as there is room."""
    train = task.data["train"]
    shown = np.unique(train.labels, return_index=True)[1][:_SHOWN]
    maps = {
        Row.of(name).label: reference_targets(task, name, trained=study.trained)[shown]
        for name in names
    }
    return figures.target_maps(train.images[shown], maps)
