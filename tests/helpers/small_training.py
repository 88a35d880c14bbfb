"""A network, data and a call of `fit` that take a second, with what a resumed run must restore."""

import keras
import numpy as np

from tfrobust.objectives import CrossEntropy, DoubleBackprop
from tfrobust.training import StepDecay, fit

layers = keras.layers


def small_model(seed=0, dropout=0.5):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dropout(dropout),
            layers.Dense(3),
        ]
    )


def small_data(count=90, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = rng.normal(size=(count, 6, 6, 1)) + 1.5 * (labels[:, None, None, None] - 1)
    return images.astype("float32"), labels


def sgd(rate=0.05):
    return keras.optimizers.SGD(rate, momentum=0.9)


def weights_of(model):
    return [np.asarray(variable.value) for variable in model.variables]


def run_to(folder, epochs, data=None, **changes):
    model = small_model(dropout=0.5)
    options = {"schedule": StepDecay(0.05, every=2), "seed": 1, "batch_size": 30, **changes}
    history = fit(
        model,
        small_data() if data is None else data,
        CrossEntropy() + DoubleBackprop(0.1),
        optimizer=sgd(),
        epochs=epochs,
        validation=small_data(30, seed=9),
        folder=folder,
        **options,
    )
    return model, history
