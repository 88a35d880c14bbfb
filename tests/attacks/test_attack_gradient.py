"""The gradient attack against closed forms and a slow loop of its own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrobust.attacks import minimal


def loss_gradient(model, x, labels):
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(x, training=False))
    return tape.gradient(loss, x).numpy()


def slow_attack(model, image, label, epsilons=1000, max_epsilon=1.0, low=0.0, high=1.0):
    """Foolbox 1.8's GradientAttack: one image, one epsilon at a time."""
    gradient = loss_gradient(model, image[None], [label])[0].astype(np.float64)
    direction = gradient / (np.sqrt(np.mean(gradient**2)) + 1e-8) * (high - low)
    best, grid = None, np.linspace(0, max_epsilon, epsilons + 1)[1:]
    for _ in range(2):
        index = -1
        for epsilon in grid:
            index += 1
            candidate = np.clip(image + epsilon * direction, low, high).astype(np.float32)
            if np.argmax(model(candidate[None], training=False)) != label:
                best = (epsilon, candidate) if best is None or epsilon < best[0] else best
                break
        else:
            return best, direction
        if index >= 20:
            return best, direction
        grid = np.linspace(0, epsilon, 21)[1:]
    return best, direction


def test_linear_closed_form(linear):
    model, x, normal, margin = linear
    exact = margin / np.linalg.norm(normal)
    distance = minimal(model, x).distance
    step = np.sqrt(36) / 1000  # one epsilon in l2
    first = np.ceil(exact / step)
    step = np.where(first <= 20, first * step / 20, step)
    assert (first <= 20).any() and (first > 20).any()
    assert (distance >= exact * (1 - 1e-5)).all()
    assert (distance <= exact + step * (1 + 1e-3)).all()


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 2.0)])
def test_same_epsilons_as_the_slow_loop(cnn, images, value_range):
    x = images[:12]
    low, high = value_range
    result = minimal(cnn, x, value_range=value_range)
    refined = clipped = 0
    for row in range(len(x)):
        best, direction = slow_attack(cnn, x[row], result.labels[row], low=low, high=high)
        assert result.success[row] == (best is not None)
        if best is None:
            continue
        epsilon, candidate = best
        inside = (candidate > low) & (candidate < high) & (np.abs(direction) > 0.1)
        np.testing.assert_allclose(
            (result.perturbation[row] / direction)[inside], epsilon, rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(x[row] + result.perturbation[row], candidate, atol=1e-5)
        refined += not np.isclose(epsilon * 1000, np.round(epsilon * 1000), atol=1e-6)
        clipped += bool(((candidate == low) | (candidate == high)).any())
    assert refined
    assert clipped or low < 0


def test_coarse_grid_and_no_refinement_beyond_it(linear):
    model, x, *_ = linear
    result = minimal(model, x, epsilons=100, max_epsilon=0.1)
    step = 0.1 / 100 * np.sqrt(36)
    late = result.success & (result.distance > 21 * step)
    assert late.any()
    steps = result.distance[late] / step
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)


def test_too_small_max_epsilon_is_unsuccessful(linear):
    model, x, normal, margin = linear
    exact = margin / np.linalg.norm(normal) / np.sqrt(36)  # in epsilons
    limit = float(np.median(exact))
    result = minimal(model, x, max_epsilon=limit)
    np.testing.assert_array_equal(result.success, exact < limit)
    assert np.isinf(result.distance[~result.success]).all()
    assert not result.perturbation[~result.success].any()


def test_saturated_classifier(cnn, images):
    sharp = keras.Sequential([cnn, keras.layers.Rescaling(1e4)])
    labels = np.argmax(cnn(images), axis=1)
    flat = ~loss_gradient(sharp, images, labels).any(axis=(1, 2, 3))
    assert flat.any(), "cross-entropy's gradient should underflow here"
    result = minimal(sharp, images)
    assert result.success[flat].all()

    # one step to the boundary with the runner-up, which is all that such a gradient knows
    for row in np.flatnonzero(flat)[:4]:
        z = tf.constant(images[row : row + 1])
        with tf.GradientTape() as tape:
            tape.watch(z)
            values = cnn(z, training=False)
            second = int(tf.argsort(values, direction="DESCENDING")[0, 1])
            gap = values[0, second] - values[0, labels[row]]
        gradient = tape.gradient(gap, z).numpy()[0]
        change = result.perturbation[row]
        inside = (images[row] + change > 0) & (images[row] + change < 1)
        ratio = change[inside] / gradient[inside]
        np.testing.assert_allclose(ratio, np.median(ratio), rtol=1e-2)


def test_zero_gradient_is_unsuccessful(cnn, images):
    cnn.layers[-1].kernel.assign(tf.zeros_like(cnn.layers[-1].kernel))
    for attack in ("gradient", "fast_gradient_sign", "basic_iterative"):
        result = minimal(cnn, images[:3], attack)
        assert not result.success.any()
        assert np.isinf(result.distance).all()
        assert not result.perturbation.any()
        assert (result.adversarial_label == -1).all()


def test_independent_of_batch_size(cnn, images):
    for attack in ("gradient", "fast_gradient_sign"):
        one_batch = minimal(cnn, images[:7], attack, batch_size=10)
        small_batches = minimal(cnn, images[:7], attack, batch_size=4)
        np.testing.assert_allclose(small_batches.distance, one_batch.distance, rtol=1e-3)
        np.testing.assert_array_equal(small_batches.adversarial_label, one_batch.adversarial_label)


class CountsTraces(keras.layers.Layer):
    traces = 0

    def call(self, inputs):
        CountsTraces.traces += 1
        return inputs


@pytest.mark.parametrize("attack", ["gradient", "fast_gradient_sign", "basic_iterative"])
def test_no_retracing(cnn, images, attack):
    model = keras.Sequential([keras.Input((8, 8, 1)), CountsTraces(), *cnn.layers])
    quick = {"bisection_steps": 3} if attack == "basic_iterative" else {}
    minimal(model, images[:5], attack, **quick)
    before = CountsTraces.traces
    setting = {"gradient": "epsilons"}.get(attack, "steps")
    minimal(model, images[:7], attack, batch_size=4, **{setting: 3}, **quick)
    minimal(model, images[:3], attack, value_range=(-1.0, 1.0), **quick)
    assert CountsTraces.traces == before
