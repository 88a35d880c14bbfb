"""Random MLPs: Theorem 4.2 and certified bounds against FGS (Tables 4.1, 4.2, Figure 4.1).

python -m experiments.peck2017.random_mlps --preset demo
"""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd

import reference_models
from experiments.common.checks import DISTINCT, Positive, Seed
from experiments.common.experiment import Task, execute
from experiments.common.members import Progress, grid
from experiments.common.page import Drawing, Report, Table
from experiments.peck2017 import claims, figures, mlp_claims, published, study
from experiments.peck2017.checks import Activation, SecondAttack
from experiments.peck2017.comparison import compare, deviations, fgs_and, quantities, statistics
from experiments.peck2017.linear import deviation_table, intervals
from tfrobust.commands import run

TABLE = "4.2"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Random networks and inputs, uniform in the thesis's intervals."""

    tests: Annotated[tuple[Literal[1, 2, 3, 4, 5, 6, 7, 8], ...], DISTINCT] = tuple(range(1, 9))
    """Rows of Table 4.2; what varies in 5 to 7 is uncertain in the text at hand."""
    activation: Activation = "tanh"
    """Of the hidden layers: not stated; that of the thesis's trained MLPs."""
    share: Positive = 1.0
    """Of the thesis's number of networks."""
    max_epsilon: Positive = 1.0
    """M of Algorithm 2.1; "100 instead of 1" for images implies 1 here."""
    attack: SecondAttack = "none"
    """A second attack beside FGS."""
    seed: Seed = 0
    """Of weights and inputs."""


PRESETS = {
    "demo": Settings(tests=(1, 4, 8), share=0.1),
    "reduced": Settings(),
    "paper": Settings(),
}


def setting(test: int, share: float = 1.0) -> dict[str, Any]:
    """What a row of Table 4.2 says of its test, and what is taken where the row is not legible."""
    row = published.TABLES[TABLE][str(test)]
    numbers = {
        name: int(row[column]) if row[column].strip() not in ("", "?") else default
        for name, column, default in (
            ("samples", "Samples", 10),
            ("features", "Dimensionality", 2),
            ("networks", "MLPs", 100),
            ("depth", "Layers", 3),
            ("width", "Units", 10),
            ("classes", "Classes", 5),
        )
    }
    numbers["networks"] = max(1, round(share * numbers["networks"]))
    return {
        **numbers,
        "sample": tuple(json.loads(row["Sample interval"])),
        "parameter": tuple(json.loads(row["Parameter interval"])),
    }


def compared(settings: Settings, test: int) -> pd.DataFrame:
    """Bounds and attacks for the networks of a test."""
    row = setting(test, settings.share)
    model = reference_models.build(
        "mlp",
        input_shape=(row["features"],),
        hidden=(row["width"],) * row["depth"],
        classes=row["classes"],
        activation=settings.activation,
    )
    attacks = fgs_and(settings.attack, max_epsilon=settings.max_epsilon)
    parts = []
    for number in range(row["networks"]):
        rng = np.random.default_rng((settings.seed, test, number))
        for weight in model.trainable_variables:
            weight.assign(rng.uniform(*row["parameter"], weight.shape))
        x = rng.uniform(*row["sample"], (row["samples"], row["features"])).astype(np.float32)
        parts.append(compare(model, x, study.WIDE, attacks).assign(network=number))
    return pd.concat(parts, ignore_index=True)


def report(task: Task, progress: Progress) -> Report:
    """Tables 4.1 and 4.2, Figure 4.1."""
    settings = task.settings
    frames = {
        str(member.settings["test"]): study.frame_of(task, member) for member in progress.finished
    }
    names = {
        "samples": "Samples",
        "features": "Dimensionality",
        "networks": "MLPs",
        "depth": "Layers",
        "width": "Units",
        "classes": "Classes",
    }
    ours = {}
    for test, frame in frames.items():
        row = setting(int(test), settings.share)
        ours[test] = {column: row[name] for name, column in names.items()}
        ours[test] |= intervals(row) | statistics(deviations(frame))
    averages = {test: _averages(frame) for test, frame in frames.items()}
    return study.report_of(
        task,
        title="random MLPs",
        lead=f"Parameters and inputs uniform in the intervals of Table 4.2. Ours, not stated: "
        f"{settings.activation} units, epsilon up to {settings.max_epsilon:g}; what the text at "
        "hand "
        "has lost of tests 5 to 7: one thing varies in each, 30 units, 50 classes, 20 units.",
        tables=[
            Table(
                "Table 4.2",
                "Deviations of FGS's norms from Theorem 4.2's bound, over all networks of a test.",
                deviation_table(TABLE, frames),
            ),
            study.cells(TABLE, ours),
            study.cells("4.1", _derivatives()),
            Table("Quantities", study.ABOUT, quantities(frames)),
        ],
        drawings=[
            Drawing(
                "Figure 4.1",
                "The mean deviation of each network, by test of Table 4.2.",
                "figure4.1",
                partial(
                    figures.boxplots, averages, xlabel="test", ylabel="mean of norm of FGS - bound"
                ),
            ),
            *figures.scatter_of(frames, "Bounds against attacks", "bounds4.2"),
        ]
        if frames
        else [],
        claims=[*claims.bounds_hold(frames, "Theorem 4.2"), *mlp_claims.random_mlps(frames)],
    )


def _averages(frame: pd.DataFrame) -> np.ndarray:
    deviation = frame["fast_gradient_sign"] - frame["printed"]
    return deviation.groupby(frame["network"]).mean().dropna().to_numpy()


def _derivatives() -> dict[str, dict[str, float]]:
    """Table 4.1's true values, the largest derivatives on a fine grid; ReLU has no second one."""
    z = np.linspace(-12, 12, 2_400_001)
    sigmoid, tanh = 1 / (1 + np.exp(-z)), np.tanh(z)
    first = {"sigm": sigmoid * (1 - sigmoid), "tanh": 1 - tanh**2, "softplus": sigmoid}
    second = {
        "sigm": first["sigm"] * (1 - 2 * sigmoid),
        "tanh": -2 * tanh * first["tanh"],
        "softplus": first["sigm"],
    }
    rows = {"First-order": first, "Second-order": second}
    found = {
        row: {name: float(np.abs(values).max()) for name, values in columns.items()}
        for row, columns in rows.items()
    }
    found["First-order"]["ReLU"] = 1.0
    return found


members = partial(grid, "test {test}", "test{test}", test="tests")
EXPERIMENT = study.define_random("random-mlps", PRESETS, members, compared, report)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
