"""Kernel scaling and kappa's increase from layer to layer (Figures 5.12, 5.13).

    python -m experiments.peck2017.kernels --preset demo

A convolution's printed rule divides kappa by ||W||_F, the certified one by its proven norm, so that
a kernel s times as large needs a change s times smaller for the same kappa behind it. Beside what
the rules say stands what is measured: the largest increase of a change that power iteration on the
Keras layer itself finds, by automatic differentiation, which knows nothing of the rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from matplotlib.figure import Figure

import reference_models
from experiments.common.checks import DISTINCT, Count, Positive, Seed
from experiments.common.experiment import Task, execute
from experiments.common.members import Member, Progress, grid
from experiments.common.page import Drawing, Report, Table
from experiments.peck2017 import claims, figures, increases, published, study
from experiments.peck2017.checks import Images, check_model_file
from tfrobust.commands import run

SCALED, LAYERS = "scaled-measured.parquet", "layers-measured.parquet"
MEASURED = "||layer(h + d) - layer(h)|| / ||d|| for the Keras layer and inputs h of test images"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The network, and how its first kernel is scaled."""

    dataset: Images = "mnist"
    """Images for LeNet-5."""
    iterations: Count = published.ADAM_ITERATIONS
    """Adam iterations, rounded up to whole epochs."""
    weights: str | None = None
    """A trained LeNet-5 (.keras) instead."""
    scales: Annotated[tuple[Positive, ...], DISTINCT] = (0.25, 0.5, 1.0, 2.0, 4.0)
    """The first convolution's kernel is multiplied by them."""
    images: Count = 200
    """The first so many test images."""
    batch_size: Count = 64
    """Of training."""
    seed: Seed = 0
    """Of weights and the order of examples."""


PRESETS = {
    "demo": Settings(dataset="digits", iterations=150, images=50),
    "reduced": Settings(),
    "paper": Settings(images=10_000, scales=(0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0)),
}


def load(settings: Settings, preset: str, data_dir: Path | None) -> study.Splits:
    """The test set, and the training set if the network is trained."""
    return study.splits(settings.dataset, data_dir, "train", weights=settings.weights)


def steps(task: Task, member: Member) -> Iterator[None]:
    """Train or load, scale the first kernel, measure every layer."""
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
    x = test.images[: settings.images]
    task.run.frame_step(
        f"{member.folder}/{SCALED}", lambda: increases.scaling(model, x, settings.scales)
    )
    yield
    task.run.frame_step(f"{member.folder}/{LAYERS}", lambda: increases.increases(model, x))
    yield


def report(task: Task, progress: Progress) -> Report:
    """Figures 5.12 and 5.13."""
    settings = task.settings
    images = len(task.data["test"].images[: settings.images])
    tables, drawings, judged = [], [], []
    for member in progress.finished:
        scaled, layers = (
            task.run.read_frame(f"{member.folder}/{file}") for file in (SCALED, LAYERS)
        )
        tables = _tables(scaled, layers)
        drawings = _drawings(settings.scales, scaled, layers)
        judged = [
            claims.scaling_divides_kappa(scaled),
            # Figure 5.12 shows one over the increase
            *claims.increases_are_proven(
                1 / scaled[["measured", "proven"]], "scalings", "Figure 5.12"
            ),
            *claims.increases_are_proven(layers, "layers", "Figure 5.13"),
            claims.increases_obey_printed_rules(layers),
        ]
    return study.report_of(
        task,
        title="kernel scaling and layers",
        lead=f"LeNet-5 on {settings.dataset}, {images} test images, medians.",
        tables=tables,
        drawings=drawings,
        claims=judged,
    )


def _tables(scaled: pd.DataFrame, layers: pd.DataFrame) -> list[Table]:
    return [
        Table(
            "Kernel scaling",
            "The first convolution's kernel times s; the bias stays. Ratios are kappa before over "
            "kappa behind, as the rules give them for the scaled network; the printed closed form "
            "takes ||W||_F from the network as trained. Proven: one over the scaled layer's norm. "
            f"Measured: one over the largest increase that power iteration finds ({MEASURED}).",
            scaled,
        ),
        Table(
            "Layer by layer",
            "kappa behind over kappa before each layer; an MLP's depend on the image, and the "
            "printed rule takes its layers together, so that one of them has it all. Proven: the "
            "norm of a linear layer alone, else the certified rule's increase. Measured: the "
            f"largest increase that power iteration finds ({MEASURED}).",
            layers.drop(columns=["linear", "alone"]),
        ),
    ]


def _drawings(scales: Sequence[float], scaled: pd.DataFrame, layers: pd.DataFrame) -> list[Drawing]:
    ratios = {
        "printed rule, scaled network": "printed ratio",
        "1 / (s ||W||), network as trained": "closed form, printed",
        "certified rule, scaled network": "certified ratio",
        "measured": "measured",
    }
    network = {"printed bound": "printed", "certified bound": "certified", "FGS": "FGS"}
    by_layer = {"printed rule": "printed", "certified rule": "certified", "measured": "measured"}

    def curves(table: pd.DataFrame, columns: dict[str, str], **options: Any) -> partial[Figure]:
        lines = {label: table[column].tolist() for label, column in columns.items()}
        over_scales = {"x": scales, "xlabel": "scale s of the first kernel"}
        return partial(figures.curves, lines=lines, **{**over_scales, **options})

    return [
        Drawing(
            "Figure 5.12",
            "The first convolution alone. Rules: median kappa in front of it over kappa behind it. "
            "Measured: one over the largest increase found of the scaled layer, ||layer(h + d) - "
            "layer(h)|| / ||d||; a rule is sound where it lies below.",
            "figure5.12",
            curves(
                scaled,
                ratios,
                ylabel="kappa before / kappa behind",
                dashed=["1 / (s ||W||), network as trained", "measured"],
            ),
        ),
        Drawing(
            "Figure 5.12, whole network",
            "The scaled kernel changes every logit as well: bounds and FGS do not follow 1/s.",
            "figure5.12-network",
            curves(scaled, network, ylabel="median l2 norm"),
        ),
        Drawing(
            "Figure 5.13",
            "How much larger a change can be behind each layer than in front of it, from input to "
            "logits: kappa's increase by the rules, and the largest increase found. A rule is "
            "sound where it lies above.",
            "figure5.13",
            curves(
                layers,
                by_layer,
                x=range(1, len(layers) + 1),
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
    complete=(SCALED, LAYERS),
    check_settings=check_settings,
    files=("weights",),
)
main = partial(execute, EXPERIMENT)


if __name__ == "__main__":
    run(main)
