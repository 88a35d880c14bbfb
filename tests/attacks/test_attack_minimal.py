"""Whatever attack: inputs are checked, results are true, and lies are rejected."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrobust.attacks import MinimalPerturbation, minimal
from tfrobust.attacks.registry import BUILT_IN


def assert_true_result(model, x, result, value_range):
    """What has to hold of any result."""
    low, high = value_range
    outputs = np.asarray(model(np.clip(x + result.perturbation, low, high), training=False))
    predicted = outputs.argmax(axis=1)
    success = result.success
    assert (predicted[success] != result.labels[success]).all()
    np.testing.assert_array_equal(result.adversarial_label[success], predicted[success])
    assert (result.adversarial_label[~success] == -1).all()
    slack = 1e-6 * (high - low)
    assert (x + result.perturbation >= low - slack).all()
    assert (x + result.perturbation <= high + slack).all()
    flat = result.perturbation.reshape(len(x), -1).astype(np.float64)
    length = np.linalg.norm(flat, ord=result.norm, axis=1)
    np.testing.assert_allclose(result.distance[success], length[success], rtol=1e-5, atol=1e-7)
    assert np.isinf(result.distance[~success]).all()
    assert not flat[~success].any()


@functools.cache
def small_mlp(classes):
    return keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            keras.layers.Flatten(),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dense(classes),
        ]
    )


@settings(max_examples=4)
@given(
    seed=st.integers(0, 2**16),
    attack=st.sampled_from([*BUILT_IN, "basic_iterative", "deepfool"]),
    norm=st.sampled_from([1, 2, np.inf]),
    value_range=st.sampled_from([(0.0, 1.0), (-123.68, 151.061), (0.1, 0.7)]),
    with_labels=st.booleans(),
)
def test_results_are_true(seed, attack, norm, value_range, with_labels):
    rng = np.random.default_rng(seed)
    classes = int(rng.choice([2, 5]))
    low, high = np.float32(value_range)
    model = small_mlp(classes)
    kernel, bias, *last = (rng.normal(0, 0.5, w.shape) for w in model.get_weights())
    # a network of pixels scaled to [0, 1]
    kernel /= high - low
    model.set_weights([kernel, bias - low * kernel.sum(axis=0), *last])
    x = np.clip(rng.uniform(low - 0.1, high + 0.1, (5, 4, 4, 2)), low, high).astype(np.float32)
    labels = rng.integers(0, classes, 5) if with_labels else None
    result = minimal(
        model, x, attack, labels=labels, value_range=value_range, norm=norm, batch_size=3
    )
    assert_true_result(model, x, result, (low, high))
    if labels is not None:
        misclassified = np.argmax(model(x), axis=1) != labels
        assert (result.distance[misclassified] == 0).all()
        assert result.success[misclassified].all()


def test_misclassified_examples_are_not_attacked(cnn, images, monkeypatch):
    seen = []

    def spy(model, x, value_range):
        def run(rows, labels):
            seen.extend(labels.numpy())
            return rows, tf.zeros([len(rows)], tf.bool)

        return run

    monkeypatch.setitem(BUILT_IN, "spy", spy)
    predicted = np.argmax(cnn(images), axis=1)
    labels = np.where(np.arange(24) % 3 == 0, (predicted + 1) % 5, predicted)
    result = minimal(cnn, images, "spy", labels=labels)
    np.testing.assert_array_equal(result.success, np.arange(24) % 3 == 0)
    np.testing.assert_array_equal(result.adversarial_label[::3], predicted[::3])
    np.testing.assert_array_equal(seen, labels[np.arange(24) % 3 != 0])
    assert (result.distance[::3] == 0).all()


def test_false_adversarials_are_rejected(cnn, images, monkeypatch):
    x = images[:6]
    labels = np.argmax(cnn(x), axis=1)
    true = x + minimal(cnn, x).perturbation

    def liar(model, rows, value_range):
        def run(rows, classes):
            lies = true.copy()
            lies[1] = x[1]  # classified correctly
            lies[2, 0, 0, 0] = 1.01  # outside the range
            lies[3, 0, 0, 0] = np.nan
            lies[4] += 1e-7  # no more than rounding
            found = np.ones(6, bool)
            found[5] = False  # adversarial, but not claimed
            return tf.constant(lies), tf.constant(found)

        return run

    monkeypatch.setitem(BUILT_IN, "liar", liar)
    result = minimal(cnn, x, "liar")
    assert result.success.tolist() == [True, False, False, False, True, False]
    assert_true_result(cnn, x, result, (0.0, 1.0))
    assert (result.labels == labels).all()


def test_softmax_head_makes_no_difference(softmax_twins, images):
    plain, headed = softmax_twins
    for attack in ("gradient", "fast_gradient_sign", "deepfool"):
        a, b = minimal(plain, images[:8], attack), minimal(headed, images[:8], attack)
        np.testing.assert_allclose(a.distance, b.distance, rtol=1e-3)
        np.testing.assert_array_equal(a.adversarial_label, b.adversarial_label)


def test_labels_and_rounding(cnn, images):
    # .3 in single precision exceeds .3 in double, which Foolbox compares it with
    x = np.clip(images, 0, np.float32(0.3))
    result = minimal(cnn, x, "LinfPGD", value_range=(0.0, 0.3), steps=3, bisection_steps=2)
    assert_true_result(cnn, x, result, (0.0, np.float32(0.3)))
    # rounding in the user's own preprocessing
    minimal(cnn, images[:2] * np.float32(1 + 1e-7))


class Subclassed(keras.Model):
    """A classifier that declares no input shape, and ends in a softmax."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.head = keras.layers.Softmax()

    def call(self, inputs):
        return self.head(self.network(inputs))


def test_subclassed_model(cnn, images):
    for attack in ("gradient", "deepfool"):
        plain, wrapped = (
            minimal(cnn, images[:4], attack),
            minimal(Subclassed(cnn), images[:4], attack),
        )
        np.testing.assert_allclose(plain.distance, wrapped.distance, rtol=1e-3)


def test_half_precision_model(images):
    layers, policy = keras.layers, {"dtype": "mixed_bfloat16"}
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(16, activation="relu", **policy),
            layers.Dense(4, **policy),
        ]
    )
    for attack in ("gradient", "basic_iterative", "deepfool"):
        result = minimal(model, images[:4], attack)
        assert result.success.any()
        assert_true_result(model, images[:4], result, (0.0, 1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: np.where(x == x.max(), np.nan, x), "x holds NaN or infinite values"),
        (lambda x: x[0], "One image is a batch of one"),
        (lambda x: x[:0], "x is an empty batch"),
        (lambda x: x * 255, r"x holds values from 0 to 255, outside value_range \(0, 1\)"),
    ],
)
def test_bad_images(cnn, images, change, message):
    with pytest.raises(ValueError, match=message):
        minimal(cnn, change(images))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"attack": "gradiant"}, ValueError, r"unknown attack 'gradiant'. Did you mean 'gradient'"),
        ({"attack": "LinfPDG"}, ValueError, r"'LinfPGD'.*Known are 'gradient', .*foolbox.attacks"),
        ({"attack": "Attack"}, ValueError, "unknown attack 'Attack'"),
        ({"attack": 3}, ValueError, "unknown attack 3"),
        ({"epsilon": 3}, TypeError, "'gradient' has no setting epsilon; it takes epsilons, max_e"),
        ({"attack": "deepfool", "bisection_steps": 3}, TypeError, "takes candidates, loss, over"),
        (
            {"attack": "FGSM", "stepsize": 3},
            TypeError,
            "it takes bisection_steps, keep, random_start",
        ),
        ({"attack": "FGSM", "bisection_steps": 0}, ValueError, "bisection_steps must be a whole"),
        ({"epsilons": 0}, ValueError, "epsilons must be a whole number of at least 1, got 0"),
        ({"max_epsilon": np.inf}, ValueError, "max_epsilon must be positive and finite, got inf"),
        ({"norm": 3}, ValueError, "norm must be 1, 2 or infinity, got 3"),
        ({"value_range": (1, 0)}, ValueError, r"value_range must be \(minimum, maximum\)"),
        ({"value_range": (0, 1, 2)}, ValueError, r"value_range must be .* got \(0, 1, 2\)"),
        ({"value_range": (0, (1, 2))}, ValueError, "value_range must be"),
        ({"value_range": ("0", "1")}, ValueError, "value_range must be"),
        ({"value_range": None}, ValueError, "value_range must be .* got None"),
        ({"value_range": (0, np.nan)}, ValueError, "value_range must be"),
        *(
            (
                {"attack": attack, name: value},
                ValueError,
                f"{name} must be a whole .* got {value}",
            )
            for value in (np.nan, np.inf, 1.5)
            for attack, name in (
                ("fast_gradient_sign", "steps"),
                ("hot_cold", "steps"),
                ("lbfgs", "steps"),
                ("lbfgs", "max_iterations"),
                ("gradient", "epsilons"),
                ("FGSM", "bisection_steps"),
            )
        ),
        ({"labels": [5] * 24}, ValueError, r"labels must lie in 0..4 for 5 classes"),
        ({"labels": [0]}, ValueError, r"labels must have shape \(24,\), got \(1,\)"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
    ],
)
def test_bad_arguments(cnn, images, arguments, error, message):
    with pytest.raises(error, match=message):
        minimal(cnn, images, **arguments)


def test_summary():
    result = MinimalPerturbation(
        distance=np.array([0, 1, 3, np.inf], np.float32),
        perturbation=np.zeros((4, 2, 2, 1), np.float32),
        success=np.array([True, True, True, False]),
        labels=np.arange(4, dtype=np.int32),
        adversarial_label=np.array([1, 0, 0, -1], np.int32),
        norm=2.0,
        attack="gradient",
    )
    assert result.median() == 3.0  # of 1, 3 and infinity
    assert result.success_rate == 0.75
    frame = result.to_frame()
    assert frame["distance"].tolist() == [0, 1, 3, np.inf]
    assert list(frame) == [
        "label",
        "adversarial_label",
        "success",
        "distance",
        "norm",
        "attack",
    ]
    assert len(frame) == 4
