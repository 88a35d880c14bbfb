"""Random linear classifiers: Theorem 3.6 against FGS and FGV (Table 3.1, Figure 3.2).

python -m experiments.peck2017.linear --preset demo
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
from experiments.peck2017.comparison import compare, summary
from tfrobust.report import Run

# wide enough not to bind: classifiers and inputs are standard normal
VALUE_RANGE = (-50.0, 50.0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Random classifiers and inputs, all standard normal."""

    features: tuple[int, ...] = (2, 20, 200)
    """Numbers of inputs."""
    classes: tuple[int, ...] = (2, 5)
    """Numbers of classes; every pair with `features` is one classifier."""
    inputs: int = 100
    """Random inputs of each classifier."""
    seed: int = 0
    """Of weights and inputs."""


PRESETS = {
    "demo": Settings(),
    "reduced": Settings(features=(2, 10, 100, 1000), classes=(2, 10), inputs=1000),
    "paper": Settings(features=(2, 10, 100, 1000), classes=(2, 10, 100), inputs=10_000),
}


def compared(features: int, classes: int, settings: Settings) -> pd.DataFrame:
    """Bounds and attacks for one random classifier."""
    rng = np.random.default_rng((settings.seed, features, classes))
    model = reference_models.build("linear", input_shape=(features,), classes=classes)
    for weight in model.trainable_variables:
        weight.assign(rng.normal(size=weight.shape))
    x = rng.normal(size=(settings.inputs, features)).astype(np.float32)
    steps = {"max_epsilon": 50.0, "steps": 30}
    reach = {"max_epsilon": 50.0 * features**0.5, "steps": 30}
    attacks = {"fast_gradient_sign": steps, "fast_gradient_value": reach}
    return compare(model, x, VALUE_RANGE, attacks, tighten=False)


def make(run: Run, settings: Settings, preset: str, data_dir: Path | None) -> Path:
    """All steps; the page's path."""
    frames = {
        f"{features} inputs, {classes} classes": run.frame_step(
            f"{features}-{classes}.parquet",
            lambda features=features, classes=classes: compared(features, classes, settings),
        )
        for features in settings.features
        for classes in settings.classes
    }
    folder = run.folder / "figures"
    first, last = next(iter(frames)), list(frames)[-1]
    drawn = {
        "Figure 3.2": (
            "FGS and FGV distances over Theorem 3.6's bound, which is the exact distance of a "
            "linear classifier: FGV reaches it with two classes, FGS does not in many dimensions.",
            figures.scatter({first: frames[first], last: frames[last]}, folder, "figure3.2"),
        ),
        "Figure 3.2, histograms": (
            f"{last}.",
            figures.histograms(frames[last], folder, "figure3.2-histograms", last),
        ),
    }
    judged = [*claims.bounds_hold(frames, "Theorem 3.6"), reached(frames)]
    return study.finish(
        run,
        preset,
        title="random linear classifiers",
        lead=f"{len(frames)} classifiers with standard normal weights, {settings.inputs:,} "
        "standard normal inputs each.",
        tables={"Table 3.1": (study.ABOUT, summary(frames, "3.1"))},
        drawn=drawn,
        judged=judged,
    )


def reached(frames: dict[str, pd.DataFrame]) -> claims.Claim:
    """With two classes the loss gradient points to the boundary: FGV finds the exact distance."""
    two = [frame for name, frame in frames.items() if name.endswith(" 2 classes")]
    if not two:
        return claims.Claim("FGV reaches the bound", "not tested", "no binary one", "Theorem 3.6")
    ratios = np.concatenate([f["fast_gradient_value"] / f["printed"] for f in two])
    ratios = ratios[np.isfinite(ratios)]
    if not len(ratios):
        return claims.Claim("FGV reaches the bound", "not tested", "no success", "Theorem 3.6")
    largest = float(ratios.max())
    return claims.Claim(
        "With two classes FGV's smallest perturbation has the length of the bound",
        "held" if largest < 1.01 else "not held",
        f"largest ratio {largest:.5f} in {len(ratios)} inputs (held under 1.01)",
        "Theorem 3.6",
    )


def check(settings: Settings, data_dir: Path | None) -> None:
    """Raises: InputError for settings that make no sense."""
    checks.distinct(settings, "features", "classes")
    checks.at_least(settings, 1, "features", "inputs")
    checks.at_least(settings, 2, "classes")
    checks.at_least(settings, 0, "seed")


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the experiment from the command line."""
    return study.execute("linear", PRESETS, make, check, arguments)


if __name__ == "__main__":
    cli.run(main)
