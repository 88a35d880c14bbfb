"""How tight and how fast the bounds are, on LeNet-5 trained on MNIST.

    python -m benchmarks.bounds [--model lenet.keras --images 1000 --iterations 1200]

Median of bound over Carlini-Wagner distance for the printed rules, the certified rules and the
tightened ones, and time per image after norms are cached, beside that of a forward pass. Exits with
status 1 if a certified bound exceeds a distance that an attack found, or a limit is missed.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tyro

import reference_models
from tfrobust import CrossEntropy, data, evaluate, fit, minimal, predict_logits
from tfrobust.arguments import as_count
from tfrobust.bounds import operator_norm_upper_bound, robustness
from tfrobust.commands import run
from tfrobust.errors import PrintedRulesWarning
from tfrobust.report import versions

# untightened, and tightened: in forward passes of the same images
UNTIGHTENED, TIGHTENED = 10, 600
GLOBAL, LOCAL = "certified, global", "certified, tightened"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured."""

    model: Path | None = None
    """A saved LeNet-5 for MNIST; trained first where None."""
    data: str = "mnist"
    """Data set, with images in [0, 1]."""
    data_dir: Path | None = None
    """Folder of prepared data sets; default: TFROBUST_DATA_DIR."""
    iterations: int = 1200
    """Adam iterations of training, batches of 128."""
    images: int = 1000
    """Of the test set, bounded and attacked."""
    carlini_wagner_steps: int = 100
    """Of each of five searches."""
    repeats: int = 3
    """Timed runs; the median counts."""
    seed: int = 0
    """Of weights and the order of examples."""


def lenet(settings: Settings) -> keras.Model:
    """The saved model, or one that is trained for `iterations`."""
    if settings.model is not None:
        return reference_models.load(settings.model)
    keras.utils.set_random_seed(settings.seed)
    train = data.load(settings.data, "train", data_dir=settings.data_dir)
    model = reference_models.build("lenet5", input_shape=train.images.shape[1:])
    epochs = math.ceil(settings.iterations / (len(train) // 128))
    fit(
        model,
        train.arrays,
        CrossEntropy(),
        optimizer=keras.optimizers.Adam(1e-3),
        epochs=epochs,
        batch_size=128,
        seed=settings.seed,
    )
    return model


def timed(function: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """The result, and the median time of runs after a first one, in seconds."""
    result = function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return result, float(np.median(times))


@dataclasses.dataclass(frozen=True)
class Measured:
    """One set of rules on the images."""

    name: str
    bound: np.ndarray
    seconds: float


def measured(model: keras.Model, x: np.ndarray, repeats: int) -> list[Measured]:
    """Bounds by each set of rules, and their time."""
    results = []
    for name, options in (
        ("printed (thesis)", {"rules": "thesis"}),
        (GLOBAL, {"tighten": False}),
        (LOCAL, {"tighten": True}),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PrintedRulesWarning)
            result, seconds = timed(
                lambda options=options: robustness(model, x, **options), repeats
            )
        results.append(Measured(name, result.bound, seconds))
    return results


def table(
    results: list[Measured], distance: np.ndarray, nearest: np.ndarray, forward: float
) -> pd.DataFrame:
    """One row per set of rules: tightness against attacks, and time."""
    attacked = np.isfinite(distance) & (distance > 0)
    return pd.DataFrame(
        {
            "rules": each.name,
            "median bound": float(np.median(each.bound)),
            "median bound / CW": float(np.median(each.bound[attacked] / distance[attacked])),
            "largest bound / attack": float(np.max(each.bound / np.maximum(nearest, 1e-12))),
            "ms per image": 1e3 * each.seconds / len(distance),
            "forward passes": each.seconds / forward,
        }
        for each in results
    )


def missed_limits(results: list[Measured], nearest: np.ndarray, forward: float) -> list[str]:
    """Certified bounds that exceed an attack's distance, and times over a limit."""
    missed = []
    for each in results:
        limit = {GLOBAL: UNTIGHTENED, LOCAL: TIGHTENED}.get(each.name)
        if limit is None:
            continue
        violations = int((each.bound > nearest).sum())
        if violations:
            missed.append(f"{each.name}: {violations} bounds exceed an attack's distance")
        if each.seconds > limit * forward:
            missed.append(f"{each.name}: more than {limit} forward passes")
    return missed


def main(arguments: list[str] | None = None) -> None:
    """Print the table.

    Raises:
        SystemExit: status 1 where a limit is missed.
        TfrobustError: no such data set or model.
    """
    settings = tyro.cli(Settings, prog="benchmarks.bounds", args=arguments)
    count = as_count("images", settings.images, 1)
    test = data.load(settings.data, "test", data_dir=settings.data_dir)
    x = test.take(min(count, len(test))).images
    model = lenet(settings)
    print(versions()["machine"], test.provenance.source, f"{len(x)} images")
    print(f"test accuracy {evaluate(model, *test.arrays)['accuracy']:.4f}")
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            norm = operator_norm_upper_bound(layer, layer.input.shape)
            print(f"{layer.name}: norm {norm:.3f}, ||W||_F {np.linalg.norm(layer.kernel):.3f}")

    steps = settings.carlini_wagner_steps
    strong = {"batch_size": 500, "steps": steps, "stepsize": 0.03}
    distance = minimal(model, x, "carlini_wagner", **strong).distance
    nearest = np.minimum(distance, minimal(model, x, "fast_gradient_sign").distance)
    _, forward = timed(lambda: predict_logits(model, x), settings.repeats)
    results = measured(model, x, settings.repeats)
    attacked = distance[np.isfinite(distance) & (distance > 0)]
    print(f"median CW distance {np.median(attacked):.4f}, on {len(attacked)} images")
    print(f"forward pass {1e3 * forward / len(x):.3f} ms per image")
    shown = table(results, distance, nearest, forward)
    print(shown.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    missed = missed_limits(results, nearest, forward)
    if missed:
        sys.exit("; ".join(missed))


if __name__ == "__main__":
    run(main)
