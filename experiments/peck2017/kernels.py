"""Kernel scaling and kappa's increase from layer to layer (Figures 5.12, 5.13).

    python -m experiments.peck2017.kernels --preset demo

Closed form and measured: a convolution's rule divides kappa by ||W||_F, so that a kernel s times as
large needs a change s times smaller for the same kappa behind it.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd

import reference_models
from experiments import cli
from experiments.peck2017 import checks, figures, published, study
from tfrobust import attacks, bounds, data
from tfrobust.report import Claim
from tfrobust.runs import Run


@dataclasses.dataclass(frozen=True)
class Settings:
    """The network, and how its first kernel is scaled."""

    dataset: str = "mnist"
    """Images for LeNet-5."""
    iterations: int = published.ADAM_ITERATIONS
    """Adam iterations, rounded up to whole epochs."""
    weights: str | None = None
    """A trained LeNet-5 (.keras) instead."""
    scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    """The first convolution's kernel is multiplied by them."""
    images: int = 200
    """The first so many test images."""
    batch_size: int = 64
    """Of training."""
    seed: int = 0
    """Of weights and the order of examples."""


PRESETS = {
    "demo": Settings(dataset="digits", iterations=150, images=50),
    "reduced": Settings(),
    "paper": Settings(images=10_000, scales=(0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0)),
}


def make(run: Run, settings: Settings, preset: str, data_dir: Path | None) -> Path:
    """All steps; the page's path."""
    model = network(run, settings, data_dir)
    x = data.load(settings.dataset, "test", data_dir).images[: settings.images]
    scaled = run.frame_step("scaled.parquet", lambda: scaling(model, x, settings.scales))
    layers = run.frame_step("layers.parquet", lambda: increases(model, x))
    folder = run.folder / "figures"
    quantities = {
        "input change a unit of kappa, printed": "printed ratio",
        "closed form 1 / (s ||W||)": "closed form, printed",
        "input change a unit of kappa, certified": "certified ratio",
        "closed form 1 / (s norm)": "closed form, certified",
    }
    whole = {"printed bound": "printed", "certified bound": "certified", "FGS": "FGS"}
    drawn = {
        "Figure 5.12": (
            "The first convolution alone: median kappa in front of it over kappa behind it.",
            figures.curves(
                settings.scales,
                {words: scaled[column].tolist() for words, column in quantities.items()},
                folder,
                "figure5.12",
                xlabel="scale s of the first kernel",
                ylabel="kappa before / kappa behind",
                dashed=[words for words in quantities if words.startswith("closed")],
            ),
        ),
        "Figure 5.12, whole network": (
            "The scaled kernel changes every logit as well, so that bounds and FGS do not "
            "follow 1/s.",
            figures.curves(
                settings.scales,
                {words: scaled[column].tolist() for words, column in whole.items()},
                folder,
                "figure5.12-network",
                xlabel="scale s of the first kernel",
                ylabel="median l2 norm",
            ),
        ),
        "Figure 5.13": (
            "How much larger kappa is behind each layer than in front of it, from input to logits.",
            figures.curves(
                range(1, len(layers) + 1),
                {
                    "printed, measured": layers["printed"].tolist(),
                    "printed, closed form": layers["printed, closed form"].tolist(),
                    "certified, measured": layers["certified"].tolist(),
                },
                folder,
                "figure5.13",
                xlabel="layer, from the input on",
                names=layers["layer"].tolist(),
                ylabel="kappa behind / before",
                dashed=["printed, closed form"],
            ),
        ),
    }
    return study.finish(
        run,
        preset,
        title="kernel scaling and layers",
        lead=f"LeNet-5 on {settings.dataset}, {len(x)} test images, medians.",
        tables={
            "Kernel scaling": ("The first convolution's kernel times s; the bias stays.", scaled),
            "Layer by layer": (
                "kappa behind over kappa before each layer. Closed form of the printed rules: "
                "||W||_F, or the t outputs a side of a max pool; perceptrons depend on the image.",
                layers,
            ),
        },
        drawn=drawn,
        judged=[
            agrees(scaled, "printed ratio", "closed form, printed", "Figure 5.12"),
            agrees(scaled, "certified ratio", "closed form, certified", "Figure 5.12"),
            agrees(
                layers.dropna(subset="printed, closed form"),
                "printed",
                "printed, closed form",
                "Figure 5.13",
            ),
        ],
    )


def network(run: Run, settings: Settings, data_dir: Path | None) -> keras.Model:
    """A trained LeNet-5, from a file where one is given."""
    if settings.weights is not None:
        return reference_models.load(settings.weights)
    train = data.load(settings.dataset, "train", data_dir)
    return study.trained(
        run,
        "lenet5",
        lambda: reference_models.build("lenet5", input_shape=train.images.shape[1:]),
        train,
        iterations=settings.iterations,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )


def both(
    model: keras.Model, x: np.ndarray
) -> tuple[bounds.RobustnessBound, bounds.RobustnessBound]:
    """Printed and certified (untightened) bounds."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the thesis's printed rules")
        printed = bounds.robustness(model, x, rules="thesis")
    return printed, bounds.robustness(model, x, tighten=False)


def scaling(model: keras.Model, x: np.ndarray, scales: Sequence[float]) -> pd.DataFrame:
    """One row a scale of the first convolution's kernel; the model is left as it was."""
    layer = next(each for each in model.layers if isinstance(each, keras.layers.Conv2D))
    kernel = layer.kernel.numpy()
    shape = layer.input.shape[1:]
    rows = []
    try:
        for scale in scales:
            layer.kernel.assign(scale * kernel)
            printed, certified = both(model, x)
            found = attacks.minimal(model, x, "fast_gradient_sign")
            rows.append(
                {
                    "s": scale,
                    "printed ratio": _ratio(printed.layers[0], printed.layers[1]),
                    "closed form, printed": 1 / (scale * np.linalg.norm(kernel)),
                    "certified ratio": _ratio(certified.layers[0], certified.layers[1]),
                    "closed form, certified": 1 / bounds.operator_norm_upper_bound(layer, shape),
                    "printed": printed.median(),
                    "certified": certified.median(),
                    "FGS": found.median(),
                }
            )
    finally:
        layer.kernel.assign(kernel)
    return pd.DataFrame(rows)


def _ratio(before: bounds.LayerKappa, behind: bounds.LayerKappa) -> float:
    return float(np.median(before.kappa / behind.kappa))


def increases(model: keras.Model, x: np.ndarray) -> pd.DataFrame:
    """One row a layer that changes kappa: kappa behind over kappa before it, medians."""
    printed, certified = both(model, x)
    by_name = {layer.name: layer for layer in model.layers}
    rows = []
    for at, (first, second) in enumerate(zip(printed.layers, printed.layers[1:], strict=False)):
        behind = certified.layers[at + 1]
        row = {
            "layer": first.name if first.kind != "relu" else f"{first.name} relu",
            "rule": first.rule,
            "printed": _ratio(second, first),
            "printed, closed form": np.nan,
            "certified": _ratio(behind, certified.layers[at]),
        }
        layer = by_name[first.name]
        if isinstance(layer, keras.layers.Conv2D) and first.kind == "Conv2D":
            row["printed, closed form"] = float(np.linalg.norm(layer.kernel))
        elif isinstance(layer, keras.layers.MaxPooling2D):
            row["printed, closed form"] = float(np.sqrt(np.prod(layer.output.shape[1:3])))
        if row["printed"] != 1 or row["certified"] != 1:
            rows.append(row)
    return pd.DataFrame(rows)


def agrees(table: pd.DataFrame, measured: str, closed: str, source: str) -> Claim:
    """Measured figures equal the closed form to a thousandth."""
    off = np.abs(table[measured] / table[closed] - 1).max()
    return Claim(
        f"{measured}: measured equals the closed form",
        "held" if off < 1e-3 else "not held",
        f"largest relative difference {off:.2g} (held under .001)",
        source,
    )


def check(settings: Settings, data_dir: Path | None) -> None:
    """Raises: InputError for settings that make no sense."""
    checks.distinct(settings, "scales")
    checks.positive(settings, "scales")
    checks.one_of(settings, checks.IMAGES, "dataset")
    checks.at_least(settings, 1, "iterations", "images", "batch_size")
    checks.at_least(settings, 0, "seed")
    checks.fits(settings, "weights", settings.dataset, data_dir, convolution=True)


def main(arguments: Sequence[str] | None = None) -> Path:
    """Run the experiment from the command line."""
    return study.execute("kernels", PRESETS, make, check, arguments, files=("weights",))


if __name__ == "__main__":
    cli.run(main)
