"""Options that make attacks what Peck 2017 prints: Algorithm 2.1, eqs. (2.9) and (2.10)."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrobust.attacks import iterate, minimal

AS_PRINTED = {"clip": False, "bracketed": False}


def bumps():
    """One input; class 1 from .03 to .1 and from .3 to .4, else class 0."""

    def hat(x, low, high):
        return keras.ops.relu(x - low) * keras.ops.relu(high - x)

    x = keras.Input((1,))
    inside = 100 * (hat(x, 0.03, 0.1) + hat(x, 0.3, 0.4)) - 1e-3
    # the gradient of the loss must lead upwards where nothing of class 1 is near
    tilt = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", name="tilt")
    difference = inside + tilt(x)
    model = keras.Model(x, keras.layers.Concatenate()([-difference, difference]))
    model.get_layer("tilt").kernel.assign([[1e-6]])
    return model


def test_algorithm_2_1_finds_what_lies_below_its_largest_epsilon():
    model, x = bumps(), np.zeros((1, 1), np.float32)
    reach = {"value_range": (-1, 1), "max_epsilon": 0.5, "norm": math.inf}
    assert not minimal(model, x, "fast_gradient_sign", **reach).success.any()
    found = minimal(model, x, "fast_gradient_sign", **reach, bracketed=False)
    # .25 is class 0, .375 class 1, .3125 too; bisection goes on below
    assert found.success.all()
    assert found.epsilon[0] == pytest.approx(0.3, abs=2e-3)
    few = minimal(model, x, "fast_gradient_sign", **reach, bracketed=False, steps=1)
    assert not few.success.any()  # .25 is class 0, and so is .5


def test_without_clipping_the_step_is_the_same_in_every_pixel(linear):
    model, x, normal, margin = linear
    x = np.clip(x + 0.5, 0, 1)  # most pixels at the border
    kernel, bias = model.layers[-1].get_weights()
    margin = np.abs((x.reshape(16, 36) @ (kernel[:, 1] - kernel[:, 0])) + bias[1] - bias[0])
    result = minimal(model, x, "fast_gradient_sign", max_epsilon=3.0, **AS_PRINTED)
    assert result.success.all()
    np.testing.assert_allclose(result.epsilon, margin / np.abs(normal).sum(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(result.distance, 6 * result.epsilon, rtol=1e-3)  # sqrt of 36 pixels
    changed = x + result.perturbation
    assert changed.max() > 1.001
    clipped = minimal(model, x, "fast_gradient_sign", max_epsilon=3.0)
    assert (clipped.distance[clipped.success] > result.distance[clipped.success]).any()


@pytest.mark.parametrize("attack", ["fast_gradient_sign", "fast_gradient_value", "hot_cold"])
def test_what_is_found_without_clipping_changes_the_class(cnn, images, attack):
    result = minimal(cnn, images, attack, max_epsilon=20.0, **AS_PRINTED)
    assert result.success.mean() > 0.8
    changed = np.asarray(cnn(images + result.perturbation)).argmax(axis=1)
    assert (changed != result.labels)[result.success].all()
    np.testing.assert_array_equal(changed[result.success], result.adversarial_label[result.success])
    assert (images + result.perturbation).min() < 0


def test_epsilon_statistics(cnn, images):
    result = minimal(cnn, images, "fast_gradient_sign", max_epsilon=1.0, **AS_PRINTED)
    found = result.epsilon[result.success]
    largest = np.abs(result.perturbation).max(axis=(1, 2, 3))
    np.testing.assert_array_equal(found, largest[result.success])
    assert np.isinf(result.epsilon[~result.success]).all()
    statistics = result.epsilon_statistics()
    assert list(statistics) == ["min", "max", "mean", "median", "std", "rate"]
    assert statistics["mean"] == pytest.approx(found.mean(), rel=1e-5)
    assert statistics["std"] == pytest.approx(found.std(), rel=1e-4)
    assert statistics["rate"] == result.success.mean()
    none = minimal(cnn, images[:1], "fast_gradient_sign", max_epsilon=1e-6).epsilon_statistics()
    assert math.isnan(none["mean"]) and none["rate"] == 0


def test_the_gradient_itself(cnn, images):
    """Eq. (2.10): eta = epsilon * gradient of the loss; the same line, another epsilon."""
    unit = minimal(cnn, images, "fast_gradient_value", max_epsilon=20.0, steps=24, **AS_PRINTED)
    plain = minimal(
        cnn,
        images,
        "fast_gradient_value",
        normalized=False,
        max_epsilon=1e3,
        steps=30,
        **AS_PRINTED,
    )
    both = unit.success & plain.success
    assert both.mean() > 0.7
    z = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(unit.labels, cnn(z))
    gradient = tape.gradient(loss, z).numpy().reshape(len(images), -1)
    change = plain.perturbation.reshape(len(images), -1)
    for row in np.flatnonzero(both):
        parallel = gradient[row] * (change[row] @ gradient[row]) / (gradient[row] @ gradient[row])
        np.testing.assert_allclose(change[row], parallel, atol=1e-4 * np.abs(change[row]).max())
    # bisection may end at another change of class along the line
    assert (np.abs(plain.distance[both] / unit.distance[both] - 1) < 1e-2).mean() > 0.8
    with pytest.raises(ValueError, match="max_epsilon must be given"):
        minimal(cnn, images, "fast_gradient_value", normalized=False)


def test_the_cold_logit_with_its_sign(linear):
    """z = (-1, -3): printed weights (+1, +3), which lead towards the cold class as well."""
    model, x, *_ = linear
    kernel, _ = model.layers[-1].get_weights()
    flat = x[:1].reshape(36)
    bias = np.array([-1, -3]) - flat @ kernel
    model.layers[-1].set_weights([kernel, bias.astype(np.float32)])
    for weight, expected in (("absolute", (-1, 3)), ("signed", (1, 3))):
        direction = kernel @ np.array(expected, np.float64)
        direction /= np.linalg.norm(direction)
        speed = (kernel[:, 1] - kernel[:, 0]) @ direction
        found = minimal(
            model, x[:1], "hot_cold", cold_weight=weight, max_epsilon=100.0, **AS_PRINTED
        )
        assert found.success[0] == (speed > 0)
        if speed > 0:
            assert found.distance[0] == pytest.approx(2 / speed, rel=1e-3)
            np.testing.assert_allclose(
                found.perturbation.ravel(), found.distance[0] * direction, atol=1e-4
            )
    with pytest.raises(ValueError, match=r'cold_weight must be "absolute" or "signed", got .hot.'):
        minimal(model, x[:1], "hot_cold", cold_weight="hot")


def test_lbfgs_with_the_norm_as_printed(linear):
    model, x, normal, margin = linear
    exact = margin / np.linalg.norm(normal)
    found = minimal(model, x[:6], "lbfgs", penalty="norm", goal="target")
    assert found.success.all()
    assert (found.distance >= exact[:6] * (1 - 1e-4)).all()
    assert np.median(found.distance / exact[:6]) < 1.3
    for name, wrong in (("penalty", "cube"), ("goal", "none")):
        with pytest.raises(ValueError, match=f"{name} must be"):
            minimal(model, x[:1], "lbfgs", **{name: wrong})


def test_lbfgs_towards_the_target_ends_there(cnn, images):
    target = 3
    rows = np.asarray(cnn(images)).argmax(axis=1) != target
    found = minimal(cnn, images[rows][:8], "lbfgs", targets=target, goal="target")
    assert found.success.any()
    assert (found.adversarial_label[found.success] == target).all()
    anywhere = minimal(cnn, images[rows][:8], "lbfgs", targets=target)
    assert (anywhere.distance <= found.distance * 1.05).all()


def test_iterating_without_clipping(cnn, images):
    result = iterate(
        cnn, images[:6], steps=3, attack_steps=30, max_epsilon=5.0, overshoot=1.0, **AS_PRINTED
    )
    assert result.images.min() < -1e-3
    labels = np.stack(
        [np.asarray(cnn(step)).argmax(axis=1) for step in result.images.swapaxes(0, 1)]
    )
    np.testing.assert_array_equal(labels.T, result.labels)
