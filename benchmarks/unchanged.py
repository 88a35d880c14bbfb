"""Outputs of the library before and after a change of its code, bit for bit on one machine.

    python -m benchmarks.unchanged write FILE.npz     # before the change
    python -m benchmarks.unchanged compare FILE.npz   # after it; status 1 on any difference

Six small seeded networks go through every measure, attack and bound, and one is trained in every
way that `fit` knows, on two devices as well (in a process of its own: devices are set before
TensorFlow starts). An operation takes one thread: its bits would depend on how many there are.
Left out: streams from disk, several hosts, cohorts, figures and pages.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1"}
import keras
import numpy as np
import tensorflow as tf
import tyro
from keras import layers

import reference_models
import tfrobust
from tfrobust import CrossEntropy, DoubleBackprop, WeightDecay, data
from tfrobust.attacks import iterate

try:
    from tfrobust.training import Cosine, Plateau, StepDecay
except ImportError:  # where they were before there were folders
    from tfrobust.schedules import Cosine, Plateau, StepDecay

SHAPE = (28, 28, 1)
BOUNDS = [("tight", "certified", None), ("global", "certified", False), ("printed", "thesis", None)]
ATTACKS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("gradient", "fast_gradient_value", "basic_iterative", "deepfool")},
    "fast_gradient_sign": {"norm": np.inf},
    "hot_cold": {"norm": 1},
    "lbfgs": {"steps": 3, "max_iterations": 30},
    "carlini_wagner": {"steps": 40, "binary_search_steps": 3, "stepsize": 0.05},
}


class Subclassed(keras.Model):
    """Two dense layers and a softmax, with a `call` of its own."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(12, activation="tanh")
        self.head = layers.Dense(10, activation="softmax")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.head(self.hidden(tf.reshape(inputs, [-1, 784])))


def convolutional(*head: keras.layers.Layer, synchronized: bool = False) -> keras.Model:
    """Convolutions with batch normalisation and max pooling, then the head."""
    normalisation = layers.BatchNormalization(synchronized=synchronized)
    features = [layers.Conv2D(6, 3, strides=2), normalisation, layers.Activation("relu")]
    features += [layers.Conv2D(8, 3, strides=2, activation="relu"), layers.MaxPooling2D(2)]
    return keras.Sequential([keras.Input(SHAPE), *features, layers.Flatten(), *head])


def randomise(model: keras.Model) -> None:
    """Draw every weight anew, biases and moving statistics too."""
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 2.0, variable.shape))
        else:
            width = np.prod(variable.shape[:-1]) if variable.name == "kernel" else 50
            variable.assign(rng.normal(0, 1.5 / np.sqrt(width), variable.shape))


def networks() -> dict[str, keras.Model]:
    """What is measured, attacked and bounded; "dense" has more classes than go in one graph."""
    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(6, 3, strides=2, activation="relu")(inputs)
    x = layers.Add()([x, layers.Conv2D(6, 3, padding="same", activation="relu")(x)])
    residual = layers.Dense(10)(layers.Flatten()(layers.AveragePooling2D(2)(x)))
    hidden = layers.Dense(30, activation="relu")(layers.Flatten()(inputs))
    return {
        "dense": keras.Model(inputs, layers.Dense(24, activation="softmax")(hidden)),
        "normalised": convolutional(layers.Dense(10), layers.Softmax()),
        "residual": keras.Model(inputs, residual),
        "lenet": reference_models.build("lenet5_lrn1"),
        "tanh": reference_models.build("mlp", input_shape=SHAPE, hidden=(20,), classes=10),
        "subclassed": Subclassed(),
    }


def measured(model: keras.Model, x: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Measures and derivatives, in batches that do not divide the examples."""
    cut = {"batch_size": 7}
    logits = tfrobust.predict_logits(model, x, **cut)
    tangents = np.random.default_rng(1).normal(size=x.shape)
    scores = tfrobust.evaluate(model, x, labels, **cut)
    return {
        "logits": logits,
        "jacobian": tfrobust.jacobian(model, x[:3], batch_size=2),
        "vjp": tfrobust.vjp(model, x, logits[::-1], **cut),
        "jvp": tfrobust.jvp(model, x, tangents, **cut),
        "gradient of the logit": tfrobust.input_gradient(model, x, **cut),
        "gradient of the loss": tfrobust.input_gradient(model, x, labels, of="loss", **cut),
        "exact": tfrobust.measure(model, x, **cut),
        "sketch": tfrobust.measure(model, x, search="sketch", directions=16, **cut),
        "gaps": tfrobust.gradient_gaps(model, x, directions=8, **cut),
        "decompose": tfrobust.decompose(model, x, **cut),
        **{key.removeprefix("validation_"): value for key, value in scores.items()},
    }


def attacked(model: keras.Model, x: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Every attack of the library's own, and iterated ones."""
    back = {"away_from": "original", "steps": 2, "attack_steps": 10}
    return {
        **{key: tfrobust.minimal(model, x, key, batch_size=5, **ATTACKS[key]) for key in ATTACKS},
        "labels given": tfrobust.minimal(model, x, labels=labels),
        "iterate": iterate(model, x, steps=3, overshoot=1.0),
        "iterate back": iterate(model, x, "hot_cold", **back),
    }


def trained(objective: Any, *, end: str | None = None, **settings: Any) -> dict[str, Any]:
    """A network with dropout after `fit`, and the records of its epochs."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(settings.pop("precision", "float32"))
    head = layers.Dropout(0.3), layers.Dense(10, activation=end)
    model = convolutional(*head, synchronized=settings.pop("synchronized", False))
    keras.config.set_dtype_policy("float32")
    train, rest = data.load("digits").take(205), data.load("digits", "validation").take(51)
    settings.setdefault("optimizer", keras.optimizers.SGD(0.02, momentum=0.9))
    settings = {"epochs": 2, "validation": rest.arrays, "batch_size": 40, **settings}
    history = tfrobust.fit(model, train.arrays, objective, **settings)
    return {"model": model, "records": [{**each, "seconds": None} for each in history.records]}


def trainings() -> dict[str, Any]:
    """Every term, schedule and precision; checkpoints, and a run that goes on."""
    loss, penalty = CrossEntropy(), DoubleBackprop(1000.0, penalty_scale="batch_mean")
    every = loss + penalty + WeightDecay(1e-4)
    plateau = {"schedule": Plateau(0.03, patience=1, minimum_improvement=0.5)}
    outputs = {
        "cross-entropy": trained(loss, optimizer=keras.optimizers.Adam()),
        "penalty as printed": trained(loss + DoubleBackprop(0.5)),
        "penalty of the mean": trained(loss + penalty),
        "alignment": trained(loss + tfrobust.AlignmentPenalty(1e-3)),
        "last layer": trained(loss + tfrobust.LastLayerRobustness(0.1, of="label"), end="softmax"),
        "decay": trained(loss + WeightDecay(1e-3), schedule=StepDecay(0.02, every=1)),
        "cosine": trained(loss, schedule=Cosine(0.03), epochs=3),
        "plateau": trained(every, epochs=3, **plateau),
        "bfloat16": trained(loss + penalty, precision="mixed_bfloat16"),
        "float16": trained(loss + penalty, precision="mixed_float16"),
        "xla": trained(loss + penalty, jit=True),
    }
    with tempfile.TemporaryDirectory() as folder:
        trained(every, epochs=1, folder=folder, **plateau)
        outputs["resumed"] = trained(every, epochs=3, folder=folder, **plateau)
        for kind in ("best", "last"):
            outputs[kind] = keras.saving.load_model(Path(folder, f"{kind}.keras"))
        newest = max(Path(folder).glob("*.npz"))
        with np.load(newest) as archive:  # by position: names may change
            outputs["checkpoint"] = [archive[key] for key in archive if key != "state"]
    return outputs


def one_device() -> dict[str, Any]:
    """All that needs one device only."""
    outputs, (x, labels) = {"trained": trainings()}, data.load("digits", "test").take(15).arrays
    for name, model in networks().items():
        model(x[:1])  # makes a subclassed one's weights
        randomise(model)
        outputs[name] = {**measured(model, x, labels), **attacked(model, x[:8], labels[:8])}
        # printed rules are for chains, and no rule reads a `call`
        covered = {"residual": BOUNDS[:2], "subclassed": []}.get(name, BOUNDS)
        for kind, rules, tighten in covered:
            settings = {"rules": rules, "tighten": tighten, "batch_size": 3}
            outputs[name][kind] = tfrobust.robustness(model, x[:5], **settings)
    return outputs


def two_devices() -> dict[str, Any]:
    """Training and measuring on two virtual devices of one processor."""
    virtual = [tf.config.LogicalDeviceConfiguration() for _ in range(2)]
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], virtual)
    names = [device.name for device in tf.config.list_logical_devices("CPU")]
    objective = CrossEntropy() + DoubleBackprop(1000.0, penalty_scale="batch_mean")
    x, labels = data.load("digits", "test").take(15).arrays
    outputs = {}
    with tf.distribute.MirroredStrategy(names).scope():
        for name, together in (("two devices", False), ("two devices, synchronized", True)):
            outputs[name] = trained(objective, synchronized=together)
            outputs[name] |= measured(outputs[name]["model"], x, labels)
    return outputs


def numbers(value: Any, name: str = "") -> dict[str, np.ndarray]:
    """All numbers in nested results, by the names of their fields; texts are left out."""
    if isinstance(value, keras.Model):
        value = {f"{k:02d} {v.name}": np.asarray(v.value) for k, v in enumerate(value.variables)}
    elif dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, (tuple, list)):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        parts = [numbers(each, f"{name}/{key}".lstrip("/")) for key, each in value.items()]
        return {key: array for part in parts for key, array in part.items()}
    return {} if value is None or isinstance(value, str) else {name: np.asarray(value)}


def compare(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> int:
    """Print every array's difference; how many are not the same, or gone."""
    different = before.keys() - after.keys()
    for name in sorted(before.keys() & after.keys()):
        old, new = before[name], after[name]
        same = (old.dtype, old.shape, old.tobytes()) == (new.dtype, new.shape, new.tobytes())
        largest = np.nanmax(abs(new.astype(float) - old)) if old.shape == new.shape else np.nan
        print(f"{name:55} {new.shape!s:>18} {largest:9.2g}  {'equal' if same else 'DIFFERENT'}")
        different |= set() if same else {name}
    print(f"not there before: {sorted(after.keys() - before.keys())}")
    print(f"{len(before)} arrays before, {len(after)} after; not the same: {sorted(different)}")
    return len(different)


@dataclasses.dataclass(frozen=True)
class Command:
    """Outputs of the library before and after a change of its code."""

    action: Annotated[Literal["write", "compare", "two_devices"], tyro.conf.Positional]
    """Write them, or compare them; "two_devices" is for the process that this one starts."""
    file: Annotated[Path, tyro.conf.Positional]
    """Of the outputs, .npz."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write or compare; exits with status 1 on any difference."""
    command = tyro.cli(Command, args=arguments)
    warnings.filterwarnings("ignore")
    if command.action == "two_devices":
        outputs = numbers(two_devices())
    else:
        with tempfile.TemporaryDirectory() as folder:
            two = str(Path(folder, "two.npz"))
            program = [sys.executable, "-m", "benchmarks.unchanged"]
            subprocess.run([*program, "two_devices", two], check=True)
            outputs = {**np.load(two), **numbers(one_device())}
    if command.action == "compare":
        sys.exit(1 if compare(dict(np.load(command.file)), outputs) else 0)
    np.savez(command.file, **outputs)


if __name__ == "__main__":
    main()
