"""A small network with its Jacobian in NumPy; trainings with target maps, also on two devices."""

import dataclasses
import json

import keras
import numpy as np
import tensorflow as tf

from helpers.nets import double_precision, randomise
from helpers.small_training import sgd, weights_of
from helpers.train_and_be_killed import die_at
from helpers.two_replicas import virtual_devices
from tfrobust.data import Arrays
from tfrobust.objectives import (
    CrossEntropy,
    InterpretationRegularization,
    JacobianRegularization,
    Objective,
    Term,
)
from tfrobust.training import fit

layers = keras.layers
FEATURES, HIDDEN, CLASSES = 5, 7, 4


def problem(count=6, seed=0):
    """A float64 network of one tanh layer, with images, labels and target maps."""
    with double_precision():
        model = keras.Sequential(
            [
                keras.Input((FEATURES,), dtype="float64"),
                layers.Dense(HIDDEN, activation="tanh"),
                layers.Dense(CLASSES),
            ]
        )
    randomise(model, seed)
    rng = np.random.default_rng(seed + 100)
    return model, {
        "images": tf.constant(rng.normal(size=(count, FEATURES))),
        "labels": tf.constant(rng.integers(0, CLASSES, count), tf.int32),
        "targets": tf.constant(rng.normal(size=(count, FEATURES))),
    }


def numpy_jacobians(weights, x):
    """(batch, classes, features), with the network's weights as a list."""
    first, bias, last, _ = weights
    slopes = 1 - np.tanh(x @ first + bias) ** 2
    return np.einsum("fh,bh,hk->bkf", first, slopes, last)


def forward(term, model, tensors, *, training=False, seed=None, scale=None):
    objective = term if isinstance(term, Objective) else Objective((term,))
    seed = None if seed is None else tf.convert_to_tensor(seed, tf.int32)
    return objective.forward(model, tensors, training=training, seed=seed, gradient_scale=scale)


def value_of(term, model, tensors, **options):
    return float(term(forward(term, model, tensors, **options)))


def gradients_of(term, model, tensors, **options):
    """By the trainable weights, one tensor for each; in a graph too."""
    sources = [variable.value for variable in model.trainable_variables]
    with tf.GradientTape() as tape:
        total = term(forward(term, model, tensors, **options))
    zero = tf.UnconnectedGradients.ZERO
    return tape.gradient(total, sources, unconnected_gradients=zero)


def derivative(term, model, tensors, **options):
    """The same as arrays."""
    return [np.asarray(gradient) for gradient in gradients_of(term, model, tensors, **options)]


def numpy_derivative(function, weights, step=1e-6):
    """Central differences of a function of a list of arrays."""
    found = []
    for k, array in enumerate(weights):
        result = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            ends = []
            for sign in (1, -1):
                moved = [each.copy() for each in weights]
                moved[k][place] += sign * step
                ends.append(function(moved))
            result[place] = (ends[0] - ends[1]) / (2 * step)
        found.append(result)
    return found


def pictures(count=48, seed=0):
    """Images of three classes, labels and target maps."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.normal(0.3 + 0.2 * labels[:, None, None, None], 0.2, (count, 6, 6, 1))
    images = np.clip(images, 0.05, 1)
    return images.astype("float32"), labels, rng.normal(size=images.shape).astype("float32")


def augmented(targets=None, count=48):
    images, labels, maps = pictures(count)
    tensors = {"images": images, "labels": labels, "targets": maps if targets is None else targets}
    return Arrays(tensors, 3, augmentation="crop4_flip")


def network(dropout=0.0):
    keras.utils.set_random_seed(0)
    head = [layers.Flatten(), layers.Dropout(dropout), layers.Dense(3)]
    return keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(4, 3, activation="tanh"), *head])


def one_layer(*shape):
    """Linear, of three classes; takes less time to trace."""
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(shape), layers.Flatten(), layers.Dense(3)])


def trained(model, data, objective, *, rate=0.05, **options):
    """The records of a training."""
    options = {"epochs": 2, "batch_size": 12, "progress": False, **options}
    history = fit(model, data, objective, optimizer=sgd(rate), **options)
    return [{k: v for k, v in one.items() if k != "seconds"} for one in history.records]


# for processes of their own ------------------------------------------------------------------


def on_one_and_on_two():
    """Both terms in both norm scales, on augmented data: values and weights are the same."""
    objective = CrossEntropy()
    for scale in ("per_example", "batch"):
        objective += InterpretationRegularization(1.0, 0.5, norm_scale=scale).named(f"maps_{scale}")
        term = JacobianRegularization(0.5, projections=1, norm_scale=scale)
        objective += term.named(f"projected_{scale}")
    results = []
    mirrored = tf.distribute.MirroredStrategy(virtual_devices(2))
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            model = network()
            records = trained(model, augmented(), objective)
            results.append((records, model.get_weights()))
    (records, weights), (other_records, other_weights) = results
    for mine, theirs in zip(records, other_records, strict=True):
        np.testing.assert_equal(list(theirs), list(mine))
        np.testing.assert_allclose(list(theirs.values()), list(mine.values()), rtol=5e-5)
    for mine, theirs in zip(weights, other_weights, strict=True):
        np.testing.assert_allclose(theirs, mine, atol=5e-6)
    start = network().get_weights()
    assert max(abs(a - b).max() for a, b in zip(start, weights, strict=True)) > 0.1


@dataclasses.dataclass(frozen=True)
class MapsApart(Term):
    """How far target maps are from their images, and the share of zeros in the images."""

    measured_names = ("difference", "padding")

    def measured(self, batch):
        return {
            "difference": tf.reduce_max(tf.abs(batch.x - batch.targets)),
            "padding": tf.reduce_mean(tf.cast(batch.x == 0, tf.float32)),
        }

    def __call__(self, batch):
        return 0.0 * tf.reduce_mean(batch.logits)


def killed_or_whole(folder, moment, step=0):
    """Maps equal to their images, on two devices; moments as in `train_and_be_killed.main`."""
    if moment != "never":
        die_at(moment, step)
    objective = CrossEntropy() + InterpretationRegularization(0.5, 0.1) + MapsApart()
    objective += JacobianRegularization(0.1, projections=1, form="half_square")
    with tf.distribute.MirroredStrategy(virtual_devices(2)).scope():
        for name, where, every in (("resumed", folder, 3), ("whole", None, None)):
            options = {"folder": where, "checkpoint_every": every}
            model = network(dropout=0.5)
            records = trained(model, augmented(targets=pictures()[0]), objective, **options)
            np.savez(folder.parent / f"{name}.npz", *weights_of(model), json.dumps(records))
