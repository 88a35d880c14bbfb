"""Kernel scaling and kappa's increase from layer to layer (Figures 5.12, 5.13).

    python -m experiments.peck2017.kernels --preset demo

A convolution's printed rule divides kappa by ||W||_F, the certified one by its proven norm, so that
a kernel s times as large needs a change s times smaller for the same kappa behind it. Beside what
the rules say stands what is measured: the largest increase of a change that power iteration on the
Keras layer itself finds, by automatic differentiation, which knows nothing of the rules.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

import reference_models
from experiments import cli
from experiments.peck2017 import checks, figures, published, study
from tfrobust import attacks, bounds, data
from tfrobust.bounds import Step, graph_steps
from tfrobust.report import Claim, Run

# of the measured increase: examples that it starts from, iterations at most
STARTS, ITERATIONS = 4, 100
# single precision of the measurement; how far below the proven norm it may end
ABOVE, BELOW = 1e-4, 0.05
MEASURED = "||layer(h + d) - layer(h)|| / ||d|| for the Keras layer and inputs h of test images"


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
    scaled = run.frame_step("scaled-measured.parquet", lambda: scaling(model, x, settings.scales))
    layers = run.frame_step("layers-measured.parquet", lambda: increases(model, x))
    folder = run.folder / "figures"
    quantities = {
        "printed rule, scaled network": "printed ratio",
        "1 / (s ||W||), network as trained": "closed form, printed",
        "certified rule, scaled network": "certified ratio",
        "measured": "measured",
    }
    whole = {"printed bound": "printed", "certified bound": "certified", "FGS": "FGS"}
    drawn = {
        "Figure 5.12": (
            "The first convolution alone. Rules: median kappa in front of it over kappa behind it. "
            "Measured: one over the largest increase found of the scaled layer, ||layer(h + d) - "
            "layer(h)|| / ||d||; a rule is sound where it lies below.",
            figures.curves(
                settings.scales,
                {words: scaled[column].tolist() for words, column in quantities.items()},
                folder,
                "figure5.12",
                xlabel="scale s of the first kernel",
                ylabel="kappa before / kappa behind",
                dashed=["1 / (s ||W||), network as trained", "measured"],
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
            "How much larger a change can be behind each layer than in front of it, from input to "
            "logits: kappa's increase by the rules, and the largest increase found. A rule is "
            "sound where it lies above.",
            figures.curves(
                range(1, len(layers) + 1),
                {
                    "printed rule": layers["printed"].tolist(),
                    "certified rule": layers["certified"].tolist(),
                    "measured": layers["measured"].tolist(),
                },
                folder,
                "figure5.13",
                xlabel="layer, from the input on",
                names=layers["layer"].tolist(),
                ylabel="behind / before",
                dashed=["measured"],
            ),
        ),
    }
    return study.finish(
        run,
        preset,
        title="kernel scaling and layers",
        lead=f"LeNet-5 on {settings.dataset}, {len(x)} test images, medians.",
        tables={
            "Kernel scaling": (
                "The first convolution's kernel times s; the bias stays. Ratios are kappa before "
                "over kappa behind, as the rules give them for the scaled network; the printed "
                "closed form takes ||W||_F from the network as trained. Proven: one over the "
                "scaled layer's norm. Measured: one over "
                f"the largest increase that power iteration finds ({MEASURED}).",
                scaled,
            ),
            "Layer by layer": (
                "kappa behind over kappa before each layer; perceptrons depend on the image, and "
                "the printed rule takes their layers together, so that one of them has it all. "
                "Proven: the norm of a linear layer alone, else the certified rule's increase. "
                f"Measured: the largest increase that power iteration finds ({MEASURED}).",
                layers.drop(columns=["linear", "alone"]),
            ),
        },
        drawn=drawn,
        judged=[
            agrees(scaled),
            # Figure 5.12 shows one over the increase
            *within(1 / scaled[["measured", "proven"]], "scalings", "Figure 5.12"),
            *within(layers, "layers", "Figure 5.13"),
            covered(layers),
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
    steps = graph_steps(model, x[:1])
    at = next(number for number, step in enumerate(steps) if step.layer is layer)
    rows = []
    try:
        for scale in scales:
            layer.kernel.assign(scale * kernel)
            printed, certified = both(model, x)
            found = attacks.minimal(model, x, "fast_gradient_sign")
            rows.append(
                {
                    "s": scale,
                    "printed ratio": _ratio(printed.layers, at + 1, at),
                    "closed form, printed": 1 / (scale * np.linalg.norm(kernel)),
                    "certified ratio": _ratio(certified.layers, at + 1, at),
                    "proven": 1 / norm(steps[at]),
                    "measured": 1 / measured(steps, x, only=at)[0],
                    "printed": printed.median(),
                    "certified": certified.median(),
                    "FGS": found.median(),
                }
            )
    finally:
        layer.kernel.assign(kernel)
    return pd.DataFrame(rows)


def _ratio(layers: Sequence[bounds.LayerKappa], behind: int, before: int) -> float:
    """Median of kappa at one layer over kappa at the next, from the back: before / behind."""
    return float(np.median(layers[before].kappa / layers[behind].kappa))


def increases(model: keras.Model, x: np.ndarray) -> pd.DataFrame:
    """One row a layer that changes kappa: kappa behind over kappa before it, and measured."""
    printed, certified = both(model, x)
    steps = graph_steps(model, x[:1])
    found = measured(steps, x)
    rows = []
    for at, (first, step) in enumerate(zip(printed.layers[:-1], steps, strict=False)):
        row = {
            "layer": first.name if first.kind != "relu" else f"{first.name} relu",
            "rule": first.rule,
            "printed": 1 / _ratio(printed.layers, at + 1, at),
            "certified": 1 / _ratio(certified.layers, at + 1, at),
            # of the layer alone: kappas count linear layers in a row as one
            "proven": norm(step),
            "measured": found[at],
        }
        row["linear"] = not np.isnan(row["proven"])
        if not row["linear"]:
            row["proven"] = row["certified"]
        # the printed rule is this layer's alone, so that it can be held against what is measured
        row["alone"] = isinstance(step.layer, keras.layers.Conv2D | keras.layers.MaxPooling2D)
        if row["printed"] != 1 or row["certified"] != 1:
            rows.append(row)
    return pd.DataFrame(rows)


def norm(step: Step) -> float:
    """The proven norm of a linear layer, NaN for what is none."""
    if not isinstance(step.layer, keras.layers.Layer):
        return float("nan")
    try:
        return bounds.operator_norm_upper_bound(step.layer, step.input_shape)
    except bounds.UnsupportedLayerError:
        return float("nan")


def measured(steps: Sequence[Step], x: np.ndarray, only: int | None = None) -> list[float]:
    """The largest ||step(h + d) - step(h)|| / ||d|| found for each step, or for one.

    h are the step's inputs for the first few examples, d is the direction in which power iteration
    on the step's derivative ends. Every figure is one that was seen, so that no Lipschitz constant
    may be smaller, but for single precision.

    Args:
        steps: of a chain.
        x: (batch, *input).
        only: the index of one step.
    """
    result, values = [], tf.constant(x[:STARTS])
    for at, step in enumerate(steps):
        if only in (None, at):
            result.append(_largest_increase(step.function, values))
        if at == only:
            break
        values = step.function(values)
    return result


def _largest_increase(function: Callable[[tf.Tensor], tf.Tensor], h: tf.Tensor) -> float:
    rng = np.random.default_rng(0)
    vectors = _unit(tf.constant(rng.normal(size=h.shape), h.dtype))
    before = 0.0

    @tf.function
    def turned(vectors: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """J'J v of each example, and the norms of J v."""
        with tf.autodiff.ForwardAccumulator(h, vectors) as forward, tf.GradientTape() as tape:
            tape.watch(h)
            values = function(h)
        moved = forward.jvp(values)
        return tape.gradient(values, h, moved), _norm(moved)

    for _ in range(ITERATIONS):
        following, lengths = turned(vectors)
        longest = float(tf.reduce_max(lengths))
        if longest <= before * (1 + 1e-5):
            break
        before, vectors = longest, _unit(following)
    # as far as a hundredth of the input, where rounding is small beside the change
    step = 1e-2 * tf.maximum(_norm(h), 1e-6)
    changes = vectors * tf.reshape(step, (-1,) + (1,) * (len(h.shape) - 1))
    moved = h + changes
    ratios = _norm(function(moved) - function(h)) / tf.maximum(_norm(moved - h), 1e-30)
    return float(tf.reduce_max(ratios))


def _norm(values: tf.Tensor) -> tf.Tensor:
    """l2 norms (batch,)."""
    return tf.norm(tf.reshape(values, (values.shape[0], -1)), axis=1)


def _unit(values: tf.Tensor) -> tf.Tensor:
    norms = tf.reshape(_norm(values), (-1,) + (1,) * (len(values.shape) - 1))
    return tf.math.divide_no_nan(values, norms)


def agrees(table: pd.DataFrame) -> Claim:
    """The printed rule on scaled networks is the closed form of the network as trained."""
    off = np.abs(table["printed ratio"] / table["closed form, printed"] - 1).max()
    return Claim(
        "Scaling a kernel by s divides the printed rule's kappa by s",
        "held" if off < 1e-3 else "not held",
        f"scaled networks' kappas differ from 1 / (s ||W||) by {off:.2g} at most (held under .001)",
        "Figure 5.12",
    )


def within(table: pd.DataFrame, each: str, source: str) -> tuple[Claim, Claim]:
    """No measured increase exceeds what is proven, and those of linear layers come near.

    Args:
        table: columns measured and proven; linear, where not all are.
        each: what a row is, in the plural.
        source: of the claims.
    """
    share = table["measured"] / table["proven"]
    linear, kind = (share[table["linear"]], "linear ") if "linear" in table else (share, "")
    high = float(share.max())
    above = Claim(
        "No change increases more than is proven",
        "held" if high <= 1 + ABOVE else "not held",
        f"largest measured / proven increase {high:.5f} over {len(share)} {each} (held up to "
        f"{1 + ABOVE:g})",
        source,
    )
    statement = "Some change increases nearly as much as the proven norm"
    if not len(linear):
        return above, Claim(statement, "not tested", "no linear layer", source)
    low = float(linear.min())
    near = Claim(
        statement,
        "held" if low >= 1 - BELOW else "not held",
        f"smallest measured increase / norm {low:.4f} over {len(linear)} {kind}{each} (held from "
        f"{1 - BELOW:g})",
        source,
    )
    return above, near


def covered(layers: pd.DataFrame) -> Claim:
    """No measured increase exceeds the printed rule's, for layers with a rule of their own."""
    statement = "No change increases more than the printed rule says"
    alone = layers[layers["alone"]]
    if not len(alone):
        return Claim(statement, "not tested", "no convolution or max pool", "Theorems 5.1, 5.3")
    share = alone["measured"] / alone["printed"]
    over = share > 1 + ABOVE
    words = ", ".join(
        f"{name} {value:.3g}" for name, value in zip(alone["layer"], share, strict=True)
    )
    return Claim(
        statement,
        "not held" if over.any() else "held",
        f"measured increase / rule: {words} (held up to {1 + ABOVE:g})",
        "Theorems 5.1, 5.3",
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
