"""Training in half precision, with a loss scale that can be seen at work, and under XLA."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrobust import data, training
from tfrobust.objectives import CrossEntropy, DoubleBackprop, ForwardPass, WeightDecay
from tfrobust.training import checkpoints, precision
from tfrobust.training.precision import LossScale, computing_in

OBJECTIVE = CrossEntropy() + DoubleBackprop(0.1) + WeightDecay(1e-4)


def digits(count=200):
    some = data.load("digits").take(count)
    return some.images[:, ::2, ::2], some.labels


def net():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((14, 14, 1)),
            layers.Conv2D(6, 3, strides=2),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


def trained(policy="float32", epochs=4, **options):
    with computing_in(policy):
        model = net()
    optimizer = keras.optimizers.SGD(0.02, momentum=0.9)
    history = training.fit(
        model,
        digits(),
        options.pop("objective", OBJECTIVE),
        optimizer=optimizer,
        epochs=epochs,
        batch_size=50,
        progress=False,
        **options,
    )
    return model, history.to_frame()


@pytest.fixture(scope="module")
def full():
    return trained()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_learns_as_float32_does(full, policy, monkeypatch):
    monkeypatch.setattr(LossScale.__init__, "__defaults__", (2.0**8, 2000))  # no step is skipped
    model, history = trained(policy)
    assert {layer.compute_dtype for layer in model.layers} == {policy.removeprefix("mixed_")}
    assert {str(variable.dtype) for variable in model.trainable_variables} == {"float32"}
    reference = full[1]
    assert history["cross_entropy"].iloc[-1] < 0.6 * history["cross_entropy"].iloc[0]
    for column in ("cross_entropy", "double_backprop"):
        np.testing.assert_allclose(history[column], reference[column], rtol=0.1)
    assert ("loss_scale" in history) == (policy == "mixed_float16")
    if policy == "mixed_float16":
        assert (history["skipped_steps"] == 0).all()


def test_the_policy_is_put_back_and_checked():
    before = keras.config.dtype_policy()
    with computing_in("mixed_bfloat16"):
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    assert keras.config.dtype_policy() is before
    with pytest.raises(ValueError, match="unknown precision 'half'"), computing_in("half"):
        pass


def test_a_scale_changes_no_gradient_but_saves_small_ones(rng):
    x = tf.constant(rng.normal(size=(5, 14, 14, 1)).astype("float32"))
    labels = tf.constant([0, 1, 2, 3, 4])
    model = net()
    tensors = {"images": x, "labels": labels}
    options = {"training": False, "input_gradients": True}
    plain = ForwardPass(model, tensors, **options)
    scaled = ForwardPass(model, tensors, **options, gradient_scale=tf.constant(512.0))
    np.testing.assert_allclose(scaled.loss_gradients, plain.loss_gradients, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(scaled.logit_gradients, plain.logit_gradients, rtol=1e-5, atol=1e-9)

    with computing_in("mixed_float16"):
        tiny = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, use_bias=False)])
    weight = (rng.normal(size=(4, 3)) * 1e-7).astype("float32")
    tiny.set_weights([weight])
    x = tf.constant(rng.normal(size=(2, 4)).astype("float32"))
    tensors = {"images": x, "labels": tf.constant([0, 2])}
    exact = (np.full((2, 3), 1 / 3) - np.eye(3)[[0, 2]]) @ weight.T.astype(float)

    def gradients(scale):
        batch = ForwardPass(
            tiny, tensors, training=True, input_gradients=True, gradient_scale=scale
        )
        return batch.loss_gradients

    # float16 holds such weights to a few bits only; their products with the cotangent underflow
    assert np.abs(gradients(None) - exact).max() > 0.1 * np.abs(exact).max()
    better = np.abs(gradients(tf.constant(2.0**15)) - exact).max()
    assert better < np.abs(gradients(None) - exact).max()


def test_overflow_halves_the_scale_and_skips_the_step(monkeypatch):
    monkeypatch.setattr(LossScale.__init__, "__defaults__", (2.0**40, 5))
    _, history = trained("mixed_float16", epochs=12, objective=CrossEntropy())
    skipped = history["skipped_steps"]
    assert skipped.iloc[0] == 4  # no step can be taken at such a scale
    assert skipped.iloc[-1] < 4
    assert history["loss_scale"].iloc[-1] < 2.0**36
    assert np.isfinite(history["cross_entropy"]).all()
    assert history["cross_entropy"].iloc[-1] < 2.0


def test_the_rule_of_the_scale():
    rule = LossScale(initial=8.0, patience=3)
    scale, good = tf.constant(8.0), tf.constant(0)
    seen = []
    for finite in (True, True, False, True, True, True, True):
        scale, good = rule.after(scale, good, tf.constant(finite))
        seen.append((float(scale), int(good)))
    assert seen == [(8, 1), (8, 2), (4, 0), (4, 1), (4, 2), (8, 0), (8, 1)]


def test_gradients_that_are_never_finite(monkeypatch):
    with computing_in("mixed_float16"):
        model = net()
    model.layers[0].kernel.assign(np.full(model.layers[0].kernel.shape, np.inf))
    with pytest.raises(training.NonFiniteLossError, match="loss is not finite in epoch 1"):
        sgd = keras.optimizers.SGD(0.1)
        training.fit(
            model, digits(), CrossEntropy(), optimizer=sgd, epochs=20, batch_size=5, progress=False
        )


def test_the_scale_is_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(LossScale.__init__, "__defaults__", (2.0**6, 3))
    _, whole = trained("mixed_float16", folder=tmp_path / "whole")
    trained("mixed_float16", epochs=2, folder=tmp_path / "halves")
    _, resumed = trained("mixed_float16", folder=tmp_path / "halves")
    columns = ["cross_entropy", "double_backprop", "loss_scale", "skipped_steps"]
    np.testing.assert_array_equal(whole[columns], resumed[columns])
    state = checkpoints.read(checkpoints.newest(tmp_path / "halves"))[0]
    assert state["loss_scale"]["value"] == resumed["loss_scale"].iloc[-1] != 2.0**6
    assert precision.SMALLEST < 1


def test_xla_takes_the_same_steps(full):
    _, history = trained(jit=True)
    columns = ["cross_entropy", "double_backprop", "weight_decay", "accuracy"]
    np.testing.assert_allclose(history[columns], full[1][columns], rtol=1e-3)
