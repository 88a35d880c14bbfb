"""Adversarial training that takes a second, with all that a resumed run has to restore."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from helpers.small_training import sgd, weights_of
from helpers.train_and_be_killed import die_at
from helpers.two_replicas import virtual_devices
from tfrobust.attacks import ThreatModel, robust_accuracy
from tfrobust.errors import InputError
from tfrobust.objectives import AdversarialTraining, CrossEntropy, WeightDecay
from tfrobust.training import fit

layers = keras.layers
BALL = ThreatModel(norm=2, epsilon=0.5, steps=2, random_start="ball")


def pictures(count=96, seed=0):
    """Of three classes, some pixels on the border of [0, 1]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    brightness = 0.3 + 0.2 * labels[:, None, None, None]
    images = np.clip(rng.normal(brightness, 0.2, (count, 6, 6, 1)), 0, 1)
    return images.astype("float32"), labels


def network(dropout=0.0, normalised=True, **options):
    keras.utils.set_random_seed(0)
    middle = [layers.BatchNormalization(**options)] if normalised else []
    head = [layers.ReLU(), layers.Flatten(), layers.Dropout(dropout), layers.Dense(3)]
    return keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(4, 3), *middle, *head])


def trained(
    model, threat=BALL, *, data=None, rate=0.05, epochs=2, batch_size=24, fit_options=(), **options
):
    """The records of a training."""
    history = fit(
        model,
        pictures() if data is None else data,
        CrossEntropy() + AdversarialTraining(threat, **options) + WeightDecay(1e-3),
        optimizer=sgd(rate),
        epochs=epochs,
        batch_size=batch_size,
        progress=False,
        **dict(fit_options),
    )
    return [{k: v for k, v in one.items() if k != "seconds"} for one in history.records]


def on_one_and_on_two():
    """The same training with and without MirroredStrategy, on virtual devices."""
    names = virtual_devices(2)
    mirrored = tf.distribute.MirroredStrategy(names)
    results = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            model = network(normalised=False)
            # of 9 images on a device, 3 or 2 stay clean
            records = trained(model, batch_size=18, epochs=1, mix=0.3)
            results.append((records, model.get_weights()))
    (records, weights), (other_records, other_weights) = results
    for mine, theirs in zip(weights, other_weights, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    for mine, theirs in zip(records, other_records, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)
    found = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            model = network()
            [result] = robust_accuracy(model, pictures(35), BALL, restarts=2, batch_size=9)
            found.append(result.resisted)
    np.testing.assert_array_equal(*found)
    with mirrored.scope():
        model = network(synchronized=True)
        with pytest.raises(InputError, match="cannot synchronize the statistics of batch normal"):
            trained(model, mode="training")


def killed_or_whole(folder, moment, step):
    """Moments are "never", and "after" or "while" the checkpoint of a step is written."""
    if moment != "never":
        die_at(moment, step)
    for name, where, every in (("resumed", folder, 3), ("whole", None, None)):
        options = {"folder": where, "checkpoint_every": every}
        model = network(dropout=0.5)
        records = trained(model, batch_size=16, mode="training", mix=0.25, fit_options=options)
        np.savez(folder.parent / f"{name}.npz", *weights_of(model), json.dumps(records))
