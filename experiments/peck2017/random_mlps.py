"""Random perceptrons: Theorem 4.2 and certified bounds against FGS (Table 4.2, Figure 4.1).

python -m experiments.peck2017.random_mlps --preset demo
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

VALUE_RANGE = (-50.0, 50.0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Random networks and inputs."""

    features: int = 10
    """Inputs."""
    classes: int = 3
    """Logits."""
    width: int = 10
    """Units of each hidden layer."""
    depths: tuple[int, ...] = (1, 2)
    """Numbers of hidden layers."""
    activations: tuple[str, ...] = ("tanh", "sigmoid", "relu")
    """Of the hidden layers."""
    networks: int = 3
    """Random networks of each kind."""
    inputs: int = 30
    """Standard normal inputs of each network."""
    attack: str = "deepfool"
    """A second attack beside FGS; Carlini-Wagner is coarse in a box as wide as these."""
    seed: int = 0
    """Of weights and inputs."""


PRESETS = {
    "demo": Settings(depths=(1, 2), activations=("tanh", "relu"), networks=2, attack="none"),
    "reduced": Settings(depths=(1, 2, 3), networks=10, inputs=100),
    "paper": Settings(depths=(1, 2, 3, 4, 5), width=50, networks=100, inputs=1000),
}


def compared(activation: str, depth: int, settings: Settings) -> pd.DataFrame:
    """Bounds and attacks for several random networks of one kind."""
    model = reference_models.build(
        "mlp",
        input_shape=(settings.features,),
        hidden=(settings.width,) * depth,
        classes=settings.classes,
        activation=activation,
    )
    attacks = {"fast_gradient_sign": {"max_epsilon": 20.0}}
    if settings.attack != "none":
        attacks[settings.attack] = {}
    parts = []
    for number in range(settings.networks):
        rng = np.random.default_rng((settings.seed, number, depth))
        for weight in model.trainable_variables:
            fan_in = weight.shape[0] if len(weight.shape) == 2 else 1.0
            weight.assign(rng.normal(size=weight.shape) / fan_in**0.5)
        x = rng.normal(size=(settings.inputs, settings.features)).astype(np.float32)
        frame = compare(model, x, VALUE_RANGE, attacks)
        frame.insert(0, "network", number)
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def make(run: Run, settings: Settings, preset: str, data_dir: Path | None) -> Path:
    """All steps; the page's path."""
    frames = {
        f"{activation}, {depth} hidden": run.frame_step(
            f"{activation}-{depth}.parquet",
            lambda activation=activation, depth=depth: compared(activation, depth, settings),
        )
        for activation in settings.activations
        for depth in settings.depths
    }
    folder = run.folder / "figures"
    drawn = {
        "Figure 4.1": (
            "Each input's bounds against the smallest distance found; above the dashed line a "
            "bound is violated.",
            figures.scatter(dict(list(frames.items())[:4]), folder, "figure4.1"),
        )
    }
    return study.finish(
        run,
        preset,
        title="random perceptrons",
        lead=f"{settings.networks} networks of each kind, {settings.width} units a layer, normal "
        f"weights with variance 1 / inputs, {settings.inputs} standard normal inputs each.",
        tables={"Table 4.2": (study.ABOUT, summary(frames, "4.2"))},
        drawn=drawn,
        judged=claims.bounds_hold(frames, "Theorem 4.2"),
    )


def check(settings: Settings, data_dir: Path | None) -> None:
    """Raises: InputError for settings that make no sense."""
    checks.distinct(settings, "depths", "activations")
    checks.at_least(settings, 1, "features", "width", "depths", "networks", "inputs")
    checks.at_least(settings, 2, "classes")
    checks.at_least(settings, 0, "seed")
    checks.one_of(settings, checks.ACTIVATIONS, "activations")
    checks.one_of(settings, checks.SECOND_ATTACKS, "attack")


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the experiment from the command line."""
    return study.execute("random-mlps", PRESETS, make, check, arguments)


if __name__ == "__main__":
    cli.run(main)
