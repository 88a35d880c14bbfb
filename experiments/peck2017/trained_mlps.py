"""Perceptrons trained on Iris, Wine and Spambase (Table 4.3, Figure 4.2).

python -m experiments.peck2017.trained_mlps --preset demo
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd

import reference_models
from experiments import cli
from experiments.peck2017 import checks, claims, figures, published, study
from experiments.peck2017.comparison import BOUNDS, compare, summary
from tfrobust import data, evaluate
from tfrobust.report import Run

_SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Data sets, training and attacks."""

    datasets: tuple[str, ...] = ("iris", "wine", "spambase")
    """Of `tfrobust.data`; hidden layers are the thesis's."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights and the order of examples: one network each."""
    epochs: int = 100
    """Of Adam, batches of 10."""
    learning_rate: float = 5e-3
    """Of Adam."""
    inputs: int = 300
    """Examples that are bounded and attacked, test set first, then validation and training."""
    attack: str = "deepfool"
    """A second attack beside FGS; Carlini-Wagner is coarse in a box as wide as these."""


PRESETS = {
    "demo": Settings(datasets=("iris", "wine"), seeds=(0, 1), epochs=40, inputs=50, attack="none"),
    "reduced": Settings(epochs=100, seeds=(0, 1, 2), inputs=1000),
    "paper": Settings(epochs=200, seeds=tuple(range(10)), inputs=5000),
}


def network(run: Run, name: str, seed: int, settings: Settings, train: data.Dataset) -> keras.Model:
    """One trained network."""
    return study.trained(
        run,
        f"{name}/seed{seed}",
        lambda: reference_models.build(f"{name}_mlp"),
        train,
        iterations=settings.epochs * (len(train) // 10),
        batch_size=10,
        learning_rate=settings.learning_rate,
        seed=seed,
    )


def compared(model: keras.Model, sets: dict[str, data.Dataset], settings: Settings) -> pd.DataFrame:
    """Bounds and attacks for one trained network."""
    x = np.concatenate([sets[split].images for split in ("test", "validation", "train")])
    value_range = sets["train"].value_range
    attacks = {"fast_gradient_sign": {"max_epsilon": value_range[1]}}
    if settings.attack != "none":
        attacks[settings.attack] = {}
    return compare(model, x[: settings.inputs], value_range, attacks, batch_size=500)


def make(run: Run, settings: Settings, preset: str, data_dir: Path | None) -> Path:
    """All steps; the page's path."""
    frames, rows = {}, []
    for name in settings.datasets:
        sets = {split: data.load(name, split, data_dir) for split in _SPLITS}
        parts = []
        for seed in settings.seeds:
            model = network(run, name, seed, settings, sets["train"])
            frame = run.frame_step(
                f"{name}/seed{seed}/compared.parquet",
                lambda model=model, sets=sets: compared(model, sets, settings),
            )
            accuracy = run.json_step(
                f"{name}/seed{seed}/accuracy.json",
                lambda model=model, sets=sets: evaluate(model, *sets["test"].arrays),
            )["accuracy"]
            frame.insert(0, "seed", seed)
            parts.append(frame)
            rows.append(
                {
                    "data": name,
                    "seed": seed,
                    "test accuracy": accuracy,
                    "FGS median": frame["fast_gradient_sign"].median(),
                    **{f"{words}, median": frame[key].median() for key, words in BOUNDS.items()},
                }
            )
        frames[name] = pd.concat(parts, ignore_index=True)
    folder = run.folder / "figures"
    drawn = {
        "Figure 4.2": (
            "Each example's bounds against the smallest distance found.",
            figures.scatter(frames, folder, "figure4.2"),
        )
    }
    for name, frame in frames.items():
        drawn[f"Figure 4.2, {name}"] = (
            "Perturbations found and lower bounds.",
            figures.histograms(frame, folder, f"figure4.2-{name}", name),
        )
    hidden = "; ".join(f"{k} {', '.join(map(str, v))}" for k, v in published.HIDDEN.items())
    return study.finish(
        run,
        preset,
        title="trained perceptrons",
        lead=f"Hidden tanh units: {hidden}. {len(settings.seeds)} seeds, {settings.epochs} epochs; "
        "features standardised, 70 / 20 / 10 % split.",
        tables={
            "Table 4.3": (study.ABOUT + " All seeds together.", summary(frames, "4.3")),
            "Every network": ("Spread over seeds.", pd.DataFrame(rows)),
        },
        drawn=drawn,
        judged=claims.bounds_hold(frames, "Theorem 4.2"),
    )


def check(settings: Settings, data_dir: Path | None) -> None:
    """Raises: InputError for settings that make no sense."""
    checks.distinct(settings, "datasets", "seeds")
    checks.one_of(settings, checks.TABLES, "datasets")
    checks.one_of(settings, checks.SECOND_ATTACKS, "attack")
    checks.at_least(settings, 1, "epochs", "inputs")
    checks.at_least(settings, 0, "seeds")
    checks.positive(settings, "learning_rate")


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the experiment from the command line."""
    return study.execute("trained-mlps", PRESETS, make, check, arguments)


if __name__ == "__main__":
    cli.run(main)
