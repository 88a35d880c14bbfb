"""How tight and how fast the bounds are, on LeNet-5 trained on MNIST.

    python -m benchmarks.bounds [--model lenet.keras --images 1000 --iterations 1200]

Median of bound over Carlini-Wagner distance for the printed rules, the certified rules and the
tightened ones, and time an image after norms are cached, beside that of a forward pass. Exits with
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
from tfrobust.bounds import operator_norm_upper_bound, robustness
from tfrobust.report import versions

# untightened, and tightened: in forward passes of the same images
UNTIGHTENED, TIGHTENED = 10, 600


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
    """The saved model, or one trained for so many iterations."""
    if settings.model is not None:
        return reference_models.load(settings.model)
    keras.utils.set_random_seed(settings.seed)
    train = data.load(settings.data, "train", settings.data_dir)
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


def main() -> None:
    """Print the table; exit with status 1 where a limit is missed."""
    settings = tyro.cli(Settings, prog="benchmarks.bounds")
    warnings.filterwarnings("ignore", "the thesis's printed rules")
    test = data.load(settings.data, "test", settings.data_dir)
    model = lenet(settings)
    x = test.take(settings.images).images
    kernels = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    print(versions()["machine"], test.provenance.source, f"{len(x)} images")
    print(f"test accuracy {evaluate(model, *test.arrays)['accuracy']:.4f}")
    for layer in kernels:
        norm = operator_norm_upper_bound(layer, layer.input.shape)
        print(f"{layer.name}: norm {norm:.3f}, ||W||_F {np.linalg.norm(layer.kernel):.3f}")

    distance = minimal(
        model,
        x,
        "carlini_wagner",
        batch_size=500,
        steps=settings.carlini_wagner_steps,
        stepsize=0.03,
    ).distance
    fast = minimal(model, x, "fast_gradient_sign").distance
    nearest = np.minimum(distance, fast)
    _, forward = timed(lambda: predict_logits(model, x), settings.repeats)
    rows, bounds, times = [], {}, {}
    for name, arguments in (
        ("printed (thesis)", {"rules": "thesis"}),
        ("certified, global", {"tighten": False}),
        ("certified, tightened", {"tighten": True}),
    ):
        found, seconds = timed(
            lambda arguments=arguments: robustness(model, x, **arguments), settings.repeats
        )
        bounds[name], times[name] = found.bound, seconds
        attacked = np.isfinite(distance) & (distance > 0)
        rows.append(
            {
                "rules": name,
                "median bound": found.median(),
                "median bound / CW": float(np.median(found.bound[attacked] / distance[attacked])),
                "largest bound / attack": float(np.max(found.bound / np.maximum(nearest, 1e-12))),
                "ms an image": 1e3 * seconds / len(x),
                "forward passes": seconds / forward,
            }
        )
    print(f"median CW distance {np.median(distance[attacked]):.4f}, on {attacked.sum()} images")
    print(f"forward pass {1e3 * forward / len(x):.3f} ms an image")
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda v: f"{v:.4g}"))
    missed = []
    for name in ("certified, global", "certified, tightened"):
        broken = int((bounds[name] > nearest).sum())
        if broken:
            missed.append(f"{name}: {broken} bounds exceed an attack's distance")
    if times["certified, global"] > UNTIGHTENED * forward:
        missed.append(f"untightened bounds cost more than {UNTIGHTENED} forward passes")
    if times["certified, tightened"] > TIGHTENED * forward:
        missed.append(f"tightened bounds cost more than {TIGHTENED} forward passes")
    if missed:
        sys.exit("; ".join(missed))


if __name__ == "__main__":
    main()
