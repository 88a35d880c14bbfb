"""Trains with checkpoints inside epochs and kills itself, or ends and trains again without them."""

import json
import os
import signal

import keras
import numpy as np
import tensorflow as tf

from helpers import small_imagenet
from helpers.small_training import sgd, small_data, small_model, weights_of
from helpers.two_replicas import virtual_devices
from tfrobust.objectives import CrossEntropy, DoubleBackprop
from tfrobust.training import StepDecay, checkpoints, fit

layers = keras.layers


def die_at(moment, step):
    """Once the checkpoint of a step is there, or when its file is written but not yet in place."""
    save, savez = checkpoints.save, np.savez

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def watched(folder, now, sets, state):
        if (moment, now) == ("while", step):
            np.savez = lambda *args, **arrays: (savez(*args, **arrays), die())
        save(folder, now, sets, state)
        if (moment, now) == ("after", step):
            die()

    checkpoints.save = watched


def image_stream(folder):
    """69 images on disk, decoded and cropped at random; one of them is corrupt."""
    if not folder.exists():
        made = small_imagenet.pictures(np.random.default_rng(0), 69, 20, 26)
        small_imagenet.write_tree(folder, made)
        broken = sorted(folder.rglob("*.JPEG"))[3]
        broken.write_bytes(broken.read_bytes()[:-60])
    return small_imagenet.load(folder)


def train(kind, folder, images, checkpoint_every):
    """Weights and records of two epochs."""
    model, data, batch_size = small_model(dropout=0.5), small_data(92), 4
    if kind == "images":
        data, batch_size = image_stream(images), 3
        head = [layers.Conv2D(2, 5, strides=3), layers.BatchNormalization(), layers.Flatten()]
        head += [layers.Dropout(0.5), layers.Dense(3)]
        model = keras.Sequential([keras.Input((16, 16, 3)), layers.Rescaling(1 / 255), *head])
    history = fit(
        model,
        data,
        CrossEntropy() + DoubleBackprop(0.1),
        optimizer=sgd(0.01),
        epochs=2,
        batch_size=batch_size,
        schedule=StepDecay(0.01, every=1),
        folder=folder,
        checkpoint_every=checkpoint_every,
        seed=1,
        progress=False,
    )
    records = [{k: v for k, v in one.items() if k != "seconds"} for one in history.records]
    return [*weights_of(model), json.dumps(records)]


def main(kind, folder, moment, step=0):
    """Moments are "never", and "after" or "while" the checkpoint of a step is written."""
    strategy = tf.distribute.get_strategy()
    if kind == "two_devices":
        strategy = tf.distribute.MirroredStrategy(virtual_devices(2))
    if moment != "never":
        die_at(moment, step)
    with strategy.scope():
        np.savez(folder.parent / "resumed.npz", *train(kind, folder, folder.parent / "images", 7))
        np.savez(folder.parent / "whole.npz", *train(kind, None, folder.parent / "images", None))
