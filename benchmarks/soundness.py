"""A campaign against what the library calls proven: `make break`.

    python -m benchmarks.soundness --minutes 60 --seed 0 --out violations

Random networks of every supported layer with images moved near the boundary, projected gradient
descent just inside the certified radius, some weights scaled from 1e-30 to 1e30; operator norms
against dense matrices in double precision; the sketch's runner-up against the exact one. Each part
takes a third of the time. Exits with status 1 if anything is violated; what violates is saved as a
model and its images.
"""

from __future__ import annotations

import dataclasses
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
import tyro

from benchmarks.random_networks import random_linear_layer, random_network
from experiments.common.checks import Count, Positive
from tfrobust import measure, norms, predict_logits
from tfrobust.bounds import operator_norm_upper_bound, robustness
from tfrobust.classifier import jacobian, logits_model
from tfrobust.commands import run
from tfrobust.files import writable_folder

# share of the certified radius within which attacks search, and beyond which they should succeed
INSIDE, BEYOND = 0.9999, 1.05
IMAGES, STEPS, RESTARTS = 100, 25, 3
DIRECTIONS = (1, 8, 64)
# relative: of an operator norm found in double precision, of a ratio found in single precision
NORM_ROUNDING, RATIO_ROUNDING = 3e-7, 1e-3


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long, and from which seed on."""

    minutes: Positive = 60.0
    """In all; each of three parts takes a third."""
    seed: Count = 1
    """Of the first network; each next one has the next seed."""
    out: Path = Path("violations")
    """Folder of networks and images that violate a claim; made when one does."""


@dataclasses.dataclass
class Tally:
    """Counts of one part."""

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    violations: int = 0

    def line(self, name: str) -> dict[str, object]:
        """One row of the table."""
        text = ", ".join(f"{key} {value:,}" for key, value in self.counts.items())
        return {"part": name, "counts": text, "violations": self.violations}


def main(arguments: list[str] | None = None) -> None:
    """Run all parts and print the table of counts."""
    settings = tyro.cli(Settings, args=arguments, description=__doc__)
    tallies = {}
    for name, attempt in (
        ("certified bounds", try_bounds),
        ("operator norms", try_norms),
        ("sketches", try_sketches),
    ):
        tallies[name] = tally = Tally()
        seed, end = settings.seed, time.monotonic() + 20 * settings.minutes
        while time.monotonic() < end:
            keras.utils.clear_session()
            attempt(seed, tally, settings.out)
            seed += 1
        print(f"{name}: seeds {settings.seed} to {seed - 1}", flush=True)
    print(pd.DataFrame([t.line(name) for name, t in tallies.items()]).to_string(index=False))
    if any(tally.violations for tally in tallies.values()):
        sys.exit(f"error: claims are violated; networks and images are in {settings.out}")


def try_bounds(seed: int, tally: Tally, out: Path) -> None:
    """Attack 100 images of one network inside their radii, and a little beyond."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    extreme = bool(rng.random() < 0.25)
    model = random_network(rng, extreme)
    x = _near_the_boundary(model, rng)
    if x is None:
        tally.counts["networks of one class"] += 1
        return
    if not np.isfinite(predict_logits(model, x)).all():
        tally.counts["networks that overflow"] += 1
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = robustness(model, x)
    proved = result.proved_in_float32 & (result.bound > 0)
    attack = _attack(model)
    inside = attack(x, result.predicted, INSIDE * result.bound, rng)
    computed = np.asarray(model(x, training=False)).argmax(axis=1)
    broken = proved & ((inside < result.bound) | (computed != result.predicted))
    kind = "extreme " if extreme else ""
    tally.counts[f"{kind}networks"] += 1
    tally.counts[f"{kind}images"] += len(x)
    tally.counts[f"{kind}proved"] += int(proved.sum())
    if proved.any() and not extreme:
        beyond = attack(x[proved], result.predicted[proved], BEYOND * result.bound[proved], rng)
        tally.counts[f"attacked within {BEYOND}"] += int(np.isfinite(beyond).sum())
    if broken.any():
        tally.violations += int(broken.sum())
        _save(out, f"bound-{seed}", model, x=x[broken], bound=result.bound[broken])


def _near_the_boundary(model: keras.Model, rng: np.random.Generator) -> np.ndarray | None:
    """Random images, moved by bisection to just before another class begins; None without one."""
    shape = model.input_shape[1:]
    x = (rng.normal(size=(IMAGES, *shape)) * rng.choice([0.1, 1, 5])).astype(np.float32)
    own = np.asarray(model(x, training=False)).argmax(axis=1)
    others = np.flatnonzero(own != own[0])
    if not len(others):
        return None
    column = (-1, *[1] * len(shape))
    target = np.where((own != own[0]).reshape(column), x[0], x[others[0]])
    low, high = np.zeros(IMAGES), np.ones(IMAGES)
    for _ in range(12):
        middle = (low + high) / 2
        moved = (x + middle.reshape(column) * (target - x)).astype(np.float32)
        same = np.asarray(model(moved, training=False)).argmax(axis=1) == own
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    share = np.clip(low - rng.random(IMAGES) * 0.01, 0, 1)
    return (x + share.reshape(column) * (target - x)).astype(np.float32)


def _attack(model: keras.Model) -> Callable[..., np.ndarray]:
    """Projected gradient descent towards every class: distances of the nearest success."""
    logits = logits_model(model)
    classes = logits.output_shape[-1]

    @tf.function(reduce_retracing=True)
    def descend(
        x: tf.Tensor, own: tf.Tensor, radius: tf.Tensor, change: tf.Tensor, other: tf.Tensor
    ) -> tf.Tensor:
        """Images visited, (steps, batch, *input)."""
        visited = tf.TensorArray(tf.float32, STEPS)
        for k in tf.range(STEPS):
            image = x + change
            visited = visited.write(k, image)
            with tf.GradientTape() as tape:
                tape.watch(image)
                values = logits(image, training=False)
                margin = tf.gather(values, own, batch_dims=1) - values[:, other]
            step = norms.unit(tape.gradient(margin, image, unconnected_gradients="zero"))
            length = norms.per_example(radius, x) * tf.maximum(
                2.0 / tf.cast(k + 2, tf.float32), 0.1
            )
            change = norms.project_ball(change - length * step, radius)
        return visited.stack()

    def attack(
        x: np.ndarray, own: np.ndarray, radius: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        nearest = np.full(len(x), np.inf)
        column = (-1, *[1] * (x.ndim - 1))
        radius = np.minimum(radius, 1e30).astype(np.float32)
        for restart in range(RESTARTS):
            start = rng.normal(size=x.shape).astype(np.float32)
            start *= (radius / np.asarray(norms.norm(start))).reshape(column) * (restart > 0)
            for other in range(classes):
                visited = descend(x, own, radius, start, tf.constant(other)).numpy()
                images = visited.reshape(-1, *x.shape[1:])
                changed = np.asarray(model(images, training=False)).argmax(1)
                changed = changed.reshape(STEPS, -1) != own
                moved = visited.astype(np.float64) - x
                distance = np.linalg.norm(moved.reshape(*moved.shape[:2], -1), axis=2)
                nearest = np.minimum(nearest, np.where(changed, distance, np.inf).min(axis=0))
        return nearest

    return attack


def try_norms(seed: int, tally: Tally, out: Path) -> None:
    """Ten linear layers against their dense matrices in double precision."""
    rng = np.random.default_rng(seed)
    for _ in range(10):
        layer, shape = random_linear_layer(rng)
        matrix = _dense_matrix(layer, shape)
        bound = operator_norm_upper_bound(layer, shape)
        if not np.isfinite(matrix).all():
            tally.counts["layers that overflow"] += 1
            continue
        scale = np.abs(matrix).max() or 1.0
        exact = scale * np.linalg.norm(matrix / scale, 2)
        tally.counts["norms"] += 1
        if not bound >= exact * (1 - NORM_ROUNDING):
            tally.violations += 1
            model = keras.Sequential([keras.Input(shape), layer])
            _save(out, f"norm-{seed}", model, exact=np.array(exact), bound=np.array(bound))


def _dense_matrix(layer: keras.layers.Layer, shape: tuple[int, ...]) -> np.ndarray:
    """(inputs, outputs) float64: the layer, which has no offset, of every unit vector."""
    size = int(np.prod(shape))
    units = np.eye(size, dtype=np.float32).reshape(size, *shape)
    return np.asarray(layer(units, training=False), np.float64).reshape(size, -1)


def try_sketches(seed: int, tally: Tally, out: Path) -> None:
    """The sketch's runner-up against the ratios of all classes."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    classes, size = int(rng.choice([3, 20, 100, 300])), int(rng.choice([3, 10, 50]))
    hidden = keras.layers.Dense(
        int(rng.choice([4, 16])), activation=str(rng.choice(["relu", "gelu"]))
    )
    last = keras.layers.Dense(classes)
    model = keras.Sequential([keras.Input((size,)), hidden, last])
    kernel, bias = last.get_weights()
    scale = 10.0 ** rng.uniform(-28, 28) if rng.random() < 0.5 else 1.0
    kind = rng.integers(4)
    if kind == 1:  # of very different sizes
        kernel = kernel * 10.0 ** rng.normal(size=classes)
    if kind == 2:  # nearly equal gradients
        kernel[:, 1:] = kernel[:, :1] + 1e-4 * kernel[:, 1:]
        bias = 1e-4 * rng.normal(size=classes)
    if kind == 3:
        bias = 3 * rng.normal(size=classes)
    last.set_weights([(scale * kernel).astype(np.float32), (scale * bias).astype(np.float32)])
    x = rng.normal(size=(IMAGES, size)).astype(np.float32)
    ratios, rounding = _ratios(model, x)
    nearest = (ratios * (1 + rounding)).min(axis=1)
    for directions in DIRECTIONS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = measure(model, x, search="sketch", directions=directions, seed=seed)
        chosen, allowed = (each[np.arange(len(x)), found.runner_up] for each in (ratios, rounding))
        wrong = chosen * (1 - allowed) > nearest
        wrong |= np.abs(found.linearized_robustness - chosen) > allowed * chosen
        tally.counts["sketches"] += len(x)
        if wrong.any():
            tally.violations += int(wrong.sum())
            _save(out, f"sketch-{seed}-{directions}", model, x=x[wrong])


def _ratios(model: keras.Model, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """r_j of Etmann 2019, eq. (9), from gradients in single precision, and relative errors.

    The ratio of the predicted class is infinite. Both (batch, classes).
    """
    values = predict_logits(model, x).astype(np.float64)
    gradients = jacobian(model, x).astype(np.float64)
    scale = np.abs(gradients).max() or 1.0
    own, rows = values.argmax(axis=1), np.arange(len(x))
    size = np.linalg.norm(gradients / scale, axis=2).max(axis=1, keepdims=True)
    gaps = np.linalg.norm((gradients[rows, own][:, None] - gradients) / scale, axis=2)
    margins = values[rows, own][:, None] - values
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = margins / scale / gaps
        # of differences of gradients, and of logits, each of which is rounded
        rounding = RATIO_ROUNDING + 1e-5 * size / gaps
        rounding += 1e-5 * np.abs(values).max(axis=1, keepdims=True) / margins
    undefined = np.isnan(ratios) | np.isnan(rounding)
    ratios[undefined], rounding[undefined] = 0, 1
    ratios[rows, own], rounding[rows, own] = np.inf, 0
    return ratios, np.minimum(rounding, 1)


def _save(out: Path, name: str, model: keras.Model, **arrays: np.ndarray) -> None:
    folder = writable_folder(out)
    model.save(folder / f"{name}.keras")
    np.savez(folder / f"{name}.npz", **arrays)
    print(f"VIOLATED: {folder / name}", flush=True)


if __name__ == "__main__":
    run(main)
