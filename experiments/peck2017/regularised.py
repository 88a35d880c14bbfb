"""Rewarding delta(h_L(x); f), the last layer's robustness, in training (Figure 4.3).

python -m experiments.peck2017.regularised --preset demo
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import reference_models
from experiments import cli
from experiments.peck2017 import checks, claims, figures, study
from experiments.peck2017.comparison import BOUNDS, compare, summary
from tfrobust import data, evaluate
from tfrobust.objectives import CrossEntropy, LastLayerRobustness
from tfrobust.report import Run


@dataclasses.dataclass(frozen=True)
class Settings:
    """Data, weights of the reward, training and attacks."""

    dataset: str = "wine"
    """iris, wine or spambase, with the thesis's hidden layers."""
    weights: tuple[float, ...] = (0.0, 0.03, 0.1, 0.3, 1.0)
    """Of the reward; 0 is plain training."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Networks for each weight."""
    epochs: int = 60
    """Of Adam, batches of 10."""
    learning_rate: float = 5e-3
    """Of Adam."""
    inputs: int = 100
    """Examples that are bounded and attacked."""
    attack: str = "none"
    """A second attack beside FGS."""


PRESETS = {
    "demo": Settings(weights=(0.0, 0.1, 0.3, 1.0), seeds=(0,), epochs=40, inputs=50),
    "reduced": Settings(
        dataset="spambase", epochs=15, seeds=(0, 1, 2), inputs=500, attack="deepfool"
    ),
    "paper": Settings(
        dataset="spambase",
        weights=(0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        seeds=tuple(range(10)),
        epochs=200,
        inputs=1000,
        attack="deepfool",
    ),
}


def make(run: Run, settings: Settings, preset: str, data_dir: Path | None) -> Path:
    """All steps; the page's path."""
    train, test = (data.load(settings.dataset, s, data_dir) for s in ("train", "test"))
    x = np.concatenate([test.images, train.images])[: settings.inputs]
    attacks = {"fast_gradient_sign": {"max_epsilon": train.value_range[1]}}
    if settings.attack != "none":
        attacks[settings.attack] = {}
    frames, rows = {}, []
    for weight in settings.weights:
        parts = []
        for seed in settings.seeds:
            place = f"weight{weight:g}/seed{seed}"
            model = study.trained(
                run,
                place,
                lambda: reference_models.build(f"{settings.dataset}_mlp"),
                train,
                iterations=settings.epochs * (len(train) // 10),
                batch_size=10,
                learning_rate=settings.learning_rate,
                seed=seed,
                objective=CrossEntropy() + LastLayerRobustness(weight),
            )
            frame = run.frame_step(
                f"{place}/compared.parquet",
                lambda model=model: compare(model, x, train.value_range, attacks, batch_size=500),
            )
            accuracy = run.json_step(
                f"{place}/accuracy.json", lambda model=model: evaluate(model, *test.arrays)
            )["accuracy"]
            rows.append(
                {
                    "weight": weight,
                    "seed": seed,
                    "test accuracy": accuracy,
                    "FGS": frame["fast_gradient_sign"].median(),
                    **{words: frame[key].median() for key, words in BOUNDS.items()},
                }
            )
            parts.append(frame)
        frames[f"weight {weight:g}"] = pd.concat(parts, ignore_index=True)
    table = pd.DataFrame(rows)
    means = table.groupby("weight").mean(numeric_only=True).drop(columns="seed")
    means = means.loc[list(settings.weights)]  # groupby sorts
    lines = {name: means[name].tolist() for name in means.columns}
    accuracy = {"test accuracy": lines.pop("test accuracy")}

    def each(name: str) -> pd.DataFrame:
        return pd.DataFrame({"x": table["weight"], "y": table[name]})

    folder = run.folder / "figures"
    words = "weight of delta in training"
    return study.finish(
        run,
        preset,
        title="rewarding the last layer's robustness",
        lead=f"Perceptrons on {settings.dataset}, {len(settings.seeds)} seeds a weight, "
        f"{settings.epochs} epochs; the reward is -weight * mean delta (Theorem 3.6).",
        tables={
            "Every network": ("Medians over examples.", table),
            "Quantities": (study.ABOUT, summary(frames, "figure 4.3")),
        },
        drawn={
            "Figure 4.3": (
                "Medians over examples, means over seeds.",
                figures.curves(
                    settings.weights, lines, folder, "figure4.3", xlabel=words, ylabel="l2 norm"
                ),
            ),
            "Figure 4.3, accuracy": (
                "What it costs.",
                figures.curves(
                    settings.weights,
                    accuracy,
                    folder,
                    "figure4.3-accuracy",
                    xlabel=words,
                    ylabel="test accuracy",
                    log=False,
                ),
            ),
        },
        judged=[
            claims.grows(
                "Rewarding delta raises the median FGS distance",
                settings.weights,
                lines["FGS"],
                "Figure 4.3",
                networks=each("FGS"),
            ),
            claims.grows(
                "Rewarding delta raises the median printed bound",
                settings.weights,
                lines[BOUNDS["printed"]],
                "Figure 4.3",
                networks=each(BOUNDS["printed"]),
            ),
            *claims.bounds_hold(frames, "Theorem 4.2"),
        ],
    )


def check(settings: Settings, data_dir: Path | None) -> None:
    """Raises: InputError for settings that make no sense."""
    checks.distinct(settings, "weights", "seeds")
    checks.one_of(settings, checks.TABLES, "dataset")
    checks.one_of(settings, checks.SECOND_ATTACKS, "attack")
    checks.positive(settings, "weights", zero=True)
    checks.at_least(settings, 1, "epochs", "inputs")
    checks.at_least(settings, 0, "seeds")
    checks.positive(settings, "learning_rate")


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the experiment from the command line."""
    return study.execute("regularised", PRESETS, make, check, arguments)


if __name__ == "__main__":
    cli.run(main)
