"""Repeated training against calls of `fit`, bit for bit."""

import keras
import numpy as np
import pytest
from helpers.nets import CountsTraces
from helpers.small_training import small_data, weights_of

from tfrobust.objectives import CrossEntropy, WeightDecay
from tfrobust.training import NonFiniteLossError, RepeatedFit, computing_in, evaluate, fit

layers = keras.layers


def build():
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            CountsTraces(),
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(3),
        ]
    )


def adam():
    return keras.optimizers.Adam(3e-3, epsilon=1e-8)


def linear(classes=3):
    return keras.Sequential([keras.Input((6, 6, 1)), layers.Flatten(), layers.Dense(classes)])


OBJECTIVE = CrossEntropy() + WeightDecay(1e-3)


def repeated(make=build, **changes):
    options = {"optimizer": adam, "epochs": 2, "batch_size": 30, **changes}
    return RepeatedFit(make, options.pop("objective", OBJECTIVE), **options)


def assert_same_run(training, data, seed, make=build, objective=OBJECTIVE):
    """The next run ends with the weights and records of `fit`."""
    history = training.train(data, seed=seed)
    keras.utils.set_random_seed(seed)
    model = make()
    expected = fit(
        model, data, objective, optimizer=adam(), epochs=2, batch_size=30, seed=seed
    ).records
    for one, other in zip(weights_of(training.model), weights_of(model), strict=True):
        np.testing.assert_array_equal(one, other)
    without_time = [{k: v for k, v in record.items() if k != "seconds"} for record in expected]
    assert list(history.records) == without_time
    return model


def test_every_run_equals_fit():
    """With convolution, batch normalisation, dropout, Adam; other data and other seeds."""
    training = repeated()
    small, large = small_data(90), small_data(120, seed=4)
    assert_same_run(training, small, 3)
    model = assert_same_run(training, large, 4)
    assert evaluate(training.model, *large) == evaluate(model, *large)
    before = CountsTraces.traces
    first = [weight.copy() for weight in weights_of(training.model)]
    training.train(small, seed=3)
    training.train(large, seed=4)
    evaluate(training.model, *small)
    assert CountsTraces.traces == before + 2  # the two calls of `build`
    for one, other in zip(weights_of(training.model), first, strict=True):
        np.testing.assert_array_equal(one, other)


def test_named_tensors_loss_scale_and_a_schedule_of_keras():
    """A new loss scale and step count in every run."""

    def make():
        with computing_in("mixed_float16"):
            return linear()

    def decaying():
        return keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 6), momentum=0.9)

    images, labels = small_data(90)
    data = {"images": 2 * images, "labels": labels, "unused": np.arange(90.0)}
    training = repeated(make, optimizer=decaying, objective=CrossEntropy())
    for seed in (1, 2):
        records = training.train(data, seed=seed).records
        assert records[0]["skipped_steps"] > 0  # the first scale is too large
        keras.utils.set_random_seed(seed)
        model = make()
        expected = fit(
            model, data, CrossEntropy(), optimizer=decaying(), epochs=2, batch_size=30, seed=seed
        ).records
        for one, other in zip(weights_of(training.model), weights_of(model), strict=True):
            np.testing.assert_array_equal(one, other)
        for one, other in zip(records, expected, strict=True):
            assert one == {k: v for k, v in other.items() if k != "seconds"}


def test_settings_name_what_a_result_depends_on():
    settings = repeated().settings()
    assert settings == repeated().settings()
    assert settings["optimizer"]["epsilon"] == 1e-8
    changed = {
        "epochs": repeated(epochs=3),
        "batch_size": repeated(batch_size=20),
        "objective": repeated(objective=CrossEntropy()),
        "optimizer": repeated(optimizer=lambda: keras.optimizers.Adam(1e-3)),
        "model": repeated(linear),
    }
    for key, training in changed.items():
        other = training.settings()
        assert [k for k in settings if settings[k] != other[k]] == [key]


def test_a_run_that_diverges_leaves_the_next_one_whole():
    training = repeated(linear, optimizer=lambda: keras.optimizers.SGD(0.1))
    images, labels = small_data(90)
    with pytest.raises(NonFiniteLossError, match="epoch 1"):
        training.train((images * 1e30, labels), seed=0)
    training.train((images, labels), seed=5)
    keras.utils.set_random_seed(5)
    model = linear()
    options = {"optimizer": keras.optimizers.SGD(0.1), "epochs": 2, "batch_size": 30, "seed": 5}
    fit(model, (images, labels), OBJECTIVE, **options)
    for one, other in zip(weights_of(training.model), weights_of(model), strict=True):
        np.testing.assert_array_equal(one, other)


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match=r"build must make a keras\.Model, got Dense"):
        repeated(lambda: layers.Dense(3))
    with pytest.raises(ValueError, match="without weights"):
        repeated(lambda: keras.Sequential([layers.Flatten(), layers.Dense(3)]))
    for optimizer in (adam(), "adam", dict):
        with pytest.raises(TypeError, match="must be a function that makes a Keras optimizer"):
            repeated(linear, optimizer=optimizer)
    with pytest.raises(ValueError, match="epochs must be a whole number of at least 1"):
        repeated(linear, epochs=0)
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
        repeated(linear, batch_size=0)
    widths = iter([3, 5])
    unequal = repeated(lambda: linear(next(widths)))
    images, labels = small_data(90)
    with pytest.raises(ValueError, match="another architecture"):
        unequal.train((images, labels), seed=0)
    training = repeated(linear)
    with pytest.raises(ValueError, match="20 examples do not fill one batch of 30"):
        training.train((images[:20], labels[:20]), seed=0)
    for seed in (-1, 2**32, 0.5):
        with pytest.raises(ValueError, match="seed must be"):
            training.train((images, labels), seed=seed)
    with pytest.raises(ValueError, match="not one-hot rows"):
        training.train((images, np.eye(3)[labels]), seed=0)
