"""Robustness from smaller kernels and from more robust layers (Figures 5.12, 5.13, eq. (5.13)).

    python -m experiments.peck2017.kernels --preset demo

The thesis draws two closed forms. Beside them stands LeNet-5: its convolutions' kernels scaled, its
own kappas in eq. (5.13), and the largest increase of a change that power iteration finds on each
Keras layer by automatic differentiation, which knows nothing of the rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

import reference_models
from experiments.common.checks import Count, Positive, Seed
from experiments.common.experiment import Task, execute
from experiments.common.members import Member, Progress, grid
from experiments.common.page import Drawing, Report, Table
from experiments.peck2017 import cnn_claims, figures, increases, layer_claims, study
from experiments.peck2017.checks import Images, check_model_file
from tfrobust.commands import run

SCALED, KAPPAS, LAYERS = "scaled.parquet", "kappas.parquet", "layers-measured.parquet"
MEASURED = "||layer(h + d) - layer(h)|| / ||d|| for the Keras layer and inputs h of test images"
# Figures 5.12 and 5.13
KERNELS, DEPTHS, ALPHA, DELTA, LAST = 20, 4, 0.01, 0.1, 2.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """The network, and how its kernels are scaled."""

    dataset: Images = "mnist"
    """Images for LeNet-5."""
    iterations: Count = study.ADAM_ITERATIONS
    """Adam iterations, rounded up to whole epochs."""
    weights: str | None = None
    """A trained LeNet-5 (.keras) instead."""
    scale: Positive = 0.9
    """Kernels are multiplied by it."""
    images: Count = 200
    """The first so many test images."""
    batch_size: Count = 64
    """Of training."""
    seed: Seed = 0
    """Of weights and the order of examples."""


PRESETS = {
    "demo": Settings(dataset="digits", iterations=150, images=50),
    "reduced": Settings(),
    "paper": Settings(images=10_000),
}


def closed_form(layers: np.ndarray, alpha: float, delta: float, last: float) -> np.ndarray:
    """1 + delta (1 - alpha^-L) / (kappa_L (1 - alpha^-1)), for L layers, kappa_l = alpha kappa_l+1.

    1 + delta L / kappa_L for alpha = 1, which the thesis excludes.
    """
    layers = np.asarray(layers, np.float64)
    if alpha == 1:
        return 1 + delta * layers / last
    return 1 + delta * (1 - alpha**-layers) / (last * (1 - 1 / alpha))


def load(settings: Settings, preset: str, data_dir: Path | None) -> study.Splits:
    """The test set, and the training set if the network is trained."""
    return study.splits(settings.dataset, data_dir, "train", weights=settings.weights)


def steps(task: Task, member: Member) -> Iterator[None]:
    """Train or load, scale the kernels, measure every layer."""
    settings, test = task.settings, task.data["test"]
    model = study.trained(
        task,
        member,
        partial(reference_models.build, "lenet5", input_shape=test.images.shape[1:]),
        task.data.get("train"),
        weights=settings.weights,
        iterations=settings.iterations,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    yield
    x, labels = test.images[: settings.images], test.labels[: settings.images]
    place, frame_step = member.folder, task.run.frame_step
    frame_step(
        f"{place}/{SCALED}",
        lambda: increases.scaling(model, x, labels, settings.scale, study.REACH),
    )
    yield
    frame_step(f"{place}/{KAPPAS}", lambda: increases.kappas(model, x))
    yield
    frame_step(f"{place}/{LAYERS}", lambda: increases.increases(model, x))
    yield


def report(task: Task, progress: Progress) -> Report:
    """Figures 5.12 and 5.13."""
    settings = task.settings
    tables, drawings, judged = [], [], []
    for member in progress.finished:
        scaled, kappas, layers = (
            task.run.read_frame(f"{member.folder}/{file}") for file in (SCALED, KAPPAS, LAYERS)
        )
        tables = _tables(scaled, kappas, layers)
        drawings = _drawings(scaled, layers)
        judged = [
            *cnn_claims.scaling(scaled),
            *layer_claims.increases_are_proven(layers),
            layer_claims.increases_obey_printed_rules(layers),
        ]
    return study.report_of(
        task,
        title="kernel scaling and layers",
        lead=f"Closed forms of the thesis, and LeNet-5 on {settings.dataset}, "
        f"{len(task.data['test'].images[: settings.images])} test images, pixels in [0, 1].",
        tables=tables,
        drawings=drawings,
        claims=judged,
    )


def _tables(scaled: pd.DataFrame, kappas: pd.DataFrame, layers: pd.DataFrame) -> list[Table]:
    relative = 1 + DELTA * kappas["inverse"].sum()
    depths = np.arange(1, DEPTHS + 1)
    values = closed_form(depths, ALPHA, DELTA, LAST)
    return [
        Table(
            "Figure 5.12, measured",
            "The first n convolutions' kernels scaled. ratio: how kappa of the input over kappa "
            "behind the last pool grows by the printed rules, 1 / scale^n by the closed form. The "
            "whole bound and FGS do not follow it, as logits and margins change too.",
            scaled.assign(closed=scaled["scale"] ** -scaled["kernels"]),
        ),
        Table(
            "Figure 5.13, in numbers",
            f"1 + delta (1 - alpha^-L) / (kappa_L (1 - alpha^-1)), alpha {ALPHA:g}, delta "
            f"{DELTA:g}, "
            f"kappa_L {LAST:g}; for alpha > 1 it ends at 1 + delta / (kappa_L (1 - 1 / alpha)).",
            pd.DataFrame({"layers": depths, "relative increase": values}),
        ),
        Table(
            "Eq. (5.13) on LeNet-5",
            "kappas of the convolutions and pools (means), and 1 + delta sum 1 / kappa_l for "
            "delta "
            f"{DELTA:g}: {relative:.3g}.",
            kappas,
        ),
        Table(
            "Layer by layer",
            "Ours: kappa behind over kappa before each layer; an MLP's depend on the image, and "
            "the "
            "printed rule takes its layers together, so that one of them has it all. Proven: the "
            "norm of a linear layer alone, else the certified rule's increase. Measured: the "
            f"largest increase that power iteration finds ({MEASURED}).",
            layers.drop(columns=["linear", "alone"]),
        ),
    ]


def _drawings(scaled: pd.DataFrame, layers: pd.DataFrame) -> list[Drawing]:
    scale = float(scaled["scale"].iloc[0])
    count, depths = np.arange(KERNELS + 1), np.arange(1, DEPTHS + 1)
    by_layer = {"printed rule": "printed", "certified rule": "certified", "measured": "measured"}
    growth = {
        f"1 / {scale:g}^n": (scale ** -count.astype(float)).tolist(),
        "LeNet-5, printed rules": scaled["ratio"].tolist(),
    }
    increase = {"closed form": closed_form(depths, ALPHA, DELTA, LAST).tolist()}
    lines = {label: layers[column].tolist() for label, column in by_layer.items()}
    return [
        Drawing(
            "Figure 5.12",
            "Relative increase of the bound with the number of kernels that are scaled.",
            "figure5.12",
            partial(
                figures.curves,
                count.tolist(),
                growth,
                xlabel="kernels",
                ylabel="relative increase",
                log=False,
                xticks=list(range(0, KERNELS + 1, 4)),
            ),
        ),
        Drawing(
            "Figure 5.13",
            f"Relative increase with the number of layers, each of which is made more robust by "
            f"{DELTA:g}; output {LAST:g}, kappa_l = {ALPHA:g} kappa_l+1.",
            "figure5.13",
            partial(
                figures.curves,
                depths.tolist(),
                increase,
                xlabel="layers",
                ylabel="relative increase",
                xticks=depths.tolist(),
            ),
        ),
        Drawing(
            "Layers, measured",
            "How much larger a change can be behind each layer than in front of it, from input to "
            "logits: kappa's increase by the rules, and the largest increase found. A rule is "
            "sound where it lies above.",
            "layers",
            partial(
                figures.curves,
                list(range(1, len(layers) + 1)),
                lines,
                xlabel="layer, from the input on",
                names=layers["layer"].tolist(),
                ylabel="behind / before",
                dashed=["measured"],
            ),
        ),
    ]


def check_settings(settings: Settings, data_dir: Path | None) -> None:
    """Raises: InputError for a network that does not fit."""
    check_model_file(settings, "weights", settings.dataset, data_dir, convolution=True)


EXPERIMENT = study.define(
    "kernels",
    PRESETS,
    load,
    partial(grid, "LeNet-5", "lenet5"),
    steps,
    report,
    complete=(SCALED, KAPPAS, LAYERS),
    check_settings=check_settings,
    files=("weights",),
)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
