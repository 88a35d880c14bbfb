"""One process of a distributed training; run by test_distribution with TF_CONFIG set or not."""

import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from helpers.nets import randomise
from helpers.two_replicas import virtual_devices
from tfrobust import alignment, data, distribution, training
from tfrobust.objectives import CrossEntropy, DoubleBackprop, WeightDecay
from tfrobust.training import precision

BATCH = 40


def net(statistics):
    """Convolutions and batch normalisation, no dropout."""
    layers = keras.layers
    frozen = statistics == "frozen"
    inputs = keras.Input((14, 14, 1))
    x = layers.Conv2D(6, 3, strides=2)(inputs)
    x = layers.BatchNormalization(synchronized=not frozen, trainable=not frozen)(x)
    x = layers.Conv2D(8, 3, activation="relu")(layers.Activation("relu")(x))
    x = layers.MaxPooling2D(2)(x)
    return randomise(keras.Model(inputs, layers.Dense(10)(layers.Flatten()(x))), 0, scale=0.1)


def main(
    kind,
    folder,
    epochs,
    devices=1,
    statistics="synchronized",
    pause=0.0,
    policy="float32",
    jit=False,
):
    Path(folder).mkdir(parents=True, exist_ok=True)
    if devices > 1:
        strategy = tf.distribute.MirroredStrategy(virtual_devices(devices))
    else:
        strategy = distribution.strategy(kind, timeout=60)
    digits = data.load("digits").take(205)
    images, labels = digits.images[:, ::2, ::2], digits.labels
    with strategy.scope():
        with precision.computing_in(policy):
            model = net(statistics)
        training.fit(
            model,
            (images, labels),
            CrossEntropy() + DoubleBackprop(1000.0, penalty_scale="batch_mean") + WeightDecay(1e-4),
            optimizer=keras.optimizers.SGD(0.02, momentum=0.9),
            epochs=epochs,
            batch_size=BATCH,
            validation=(images[:51], labels[:51]),
            folder=folder,
            jit=jit,
            callbacks=[lambda record, model: time.sleep(pause)],
        )
        measured = alignment.measure(model, images[:33], batch_size=8)
        sketched = alignment.measure(model, images[:33], search="sketch", batch_size=8)
        scores = training.evaluate(model, images[:33], labels[:33], batch_size=8)
        index, chief = distribution.worker_index(), distribution.is_chief()
        # as the state of a model without batch normalisation
        nothing = distribution.gather_rows(np.zeros((2, 0), np.float32))
    weights = {f"w{k}": keras.ops.convert_to_numpy(v) for k, v in enumerate(model.variables)}
    np.savez(
        Path(folder) / f"final-{index}.npz",
        robustness=measured.linearized_robustness,
        runner_up=measured.runner_up,
        alignment=measured.alignment,
        sketched=sketched.runner_up,
        scores=list(scores.values()),
        chief=chief,
        nothing=nothing,
        replicas=strategy.num_replicas_in_sync,
        **weights,
    )
