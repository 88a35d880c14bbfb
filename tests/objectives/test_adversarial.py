"""The batch that adversarial training makes, before it is trained on."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.nets import shaken
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrobust.attacks import ThreatModel, pgd
from tfrobust.errors import InputError, InputTypeError
from tfrobust.objectives import AdversarialTraining, CrossEntropy, Objective

layers = keras.layers
L2 = ThreatModel(norm=2, epsilon=0.5, steps=3)


def net(dropout=0.0, normalised=False):
    """A network, images of which some pixels lie on the border of [0, 1], and their labels."""
    middle = [layers.BatchNormalization()] if normalised else []
    head = [layers.ReLU(), layers.Flatten(), layers.Dropout(dropout), layers.Dense(3)]
    first = layers.Conv2D(4, 3, kernel_initializer="he_normal")
    model = shaken(keras.Sequential([keras.Input((6, 6, 1)), first, *middle, *head]))
    rng = np.random.default_rng(0)
    images = np.clip(rng.normal(0.5, 0.3, (20, 6, 6, 1)), 0, 1).astype("f4")
    return model, images, rng.integers(0, 3, 20).astype("int32")


def made(model, images, labels, term, seed=(0, 0), training=True):
    """The forward pass on the batch that a term makes."""
    objective = CrossEntropy() + term
    tensors = {"images": tf.constant(images), "labels": tf.constant(labels)}
    return objective.forward(model, tensors, training=training, seed=tf.constant(seed))


@pytest.mark.parametrize(
    "threat",
    [
        L2,
        ThreatModel(norm=np.inf, epsilon=0.1, step_size=0.04, steps=4),
        ThreatModel(norm=2, epsilon=1, steps=2, objective="carlini_wagner", floor=0),
        ThreatModel(norm=2, epsilon=1, steps=2, floor=1e-8, order="clip_then_project"),
    ],
    ids=str,
)
def test_other_terms_see_what_pgd_finds(threat):
    model, images, labels = net(dropout=0.5, normalised=True)
    batch = made(model, images, labels, AdversarialTraining(threat), training=False)
    settings = {name: getattr(threat, name) for name in ("norm", "epsilon", "step_size", "steps")}
    settings |= {name: getattr(threat, name) for name in ("objective", "floor", "order")}
    expected = pgd(model, images, labels, stop="last", **settings)
    np.testing.assert_allclose(batch.x, images + expected.perturbation, atol=1e-5)
    np.testing.assert_array_equal(batch.tensors["clean_images"], images)
    first = AdversarialTraining(threat, stop="success")
    batch = made(model, images, labels, first, training=False)
    expected = pgd(model, images, labels, **settings)
    np.testing.assert_allclose(batch.x, images + expected.perturbation, atol=1e-5)


def test_losses_are_those_of_the_perturbed_images():
    model, images, labels = net()
    objective = CrossEntropy(0.5) + AdversarialTraining(L2) + CrossEntropy(2.0).named("second")
    tensors = {"images": tf.constant(images), "labels": tf.constant(labels)}
    batch = objective.forward(model, tensors, training=False)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(batch.x))
    parts = objective.parts(batch)
    assert list(parts) == objective.names == ["cross_entropy", "second"]
    assert float(parts["second"]) == pytest.approx(2 * float(tf.reduce_mean(losses)), rel=1e-5)
    clean = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(images))
    assert (losses > clean).numpy().all()
    with tf.GradientTape() as tape:  # the search is not differentiated
        value = objective.parts(objective.forward(model, tensors, training=False))["cross_entropy"]
    found = tape.gradient(value, model.trainable_variables)
    fixed = {**tensors, "images": batch.x}
    with tf.GradientTape() as tape:
        value = CrossEntropy(0.5)(
            Objective((CrossEntropy(),)).forward(model, fixed, training=False)
        )
    for mine, other in zip(found, tape.gradient(value, model.trainable_variables), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


@settings(max_examples=12)
@given(
    norm=st.sampled_from([2, np.inf]),
    start=st.sampled_from([None, "ball", "image"]),
    mode=st.sampled_from(["inference", "training"]),
    mix=st.sampled_from([0.0, 0.25, 0.5]),
    radius=st.floats(0.01, 0.9),
    seed=st.integers(0, 2**16),
)
def test_images_stay_inside_ball_and_range(norm, start, mode, mix, radius, seed):
    model, images, labels = net(dropout=0.3)
    threat = ThreatModel(norm=norm, epsilon=radius, steps=2, random_start=start)
    term = AdversarialTraining(threat, mode=mode, mix=mix)
    batch = made(model, images, labels, term, seed=(seed, 1))
    changes = (batch.x.numpy().astype(float) - images).reshape(20, -1)
    assert (np.linalg.norm(changes, ord=norm, axis=1) <= radius * (1 + 1e-6) + 1e-6).all()
    assert (batch.x.numpy() >= 0).all()
    assert (batch.x.numpy() <= 1).all()
    moved = changes.any(axis=1)
    np.testing.assert_array_equal(moved, batch.tensors["perturbed"])
    assert moved.sum() == 20 * (1 - mix)


def test_each_step_starts_elsewhere():
    model, images, labels = net()
    for start in ("ball", "image"):
        threat = ThreatModel(norm=2, epsilon=1, steps=1, step_size=1e-6, random_start=start)
        one, same, other = (
            made(model, images, labels, AdversarialTraining(threat), seed=seed).x.numpy()
            for seed in ((5, 0), (5, 0), (5, 1))
        )
        np.testing.assert_array_equal(one, same)
        assert (abs(one - other) > 1e-3).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(
    ("mix", "clean"),
    [
        (0.5, [1, 3, 5, 7, 9]),
        (0.29, [3, 6]),
        (0.9, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (1 - 0.9, [9]),  # rounded to a little less than .1
    ],
)
def test_a_part_of_the_batch_stays_clean(mix, clean):
    model, images, labels = net()
    objective = CrossEntropy() + AdversarialTraining(L2, mix=mix)
    tensors = {"images": tf.constant(images[:10]), "labels": tf.constant(labels[:10])}
    batch = objective.forward(model, tensors, training=False)
    perturbed = batch.tensors["perturbed"].numpy()
    np.testing.assert_array_equal(np.flatnonzero(~perturbed), clean)
    whole = made(model, images[:10], labels[:10], AdversarialTraining(L2)).x.numpy()
    expected = np.where(perturbed[:, None, None, None], whole, images[:10])
    np.testing.assert_allclose(batch.x, expected, atol=1e-6)
    hits = np.asarray(model(batch.x)).argmax(axis=1) == labels[:10]
    assert objective.accuracy_names == ("accuracy", "adversarial_accuracy")
    found = objective.accuracies(batch)
    assert float(found["accuracy"]) == pytest.approx(hits[~perturbed].mean())
    assert float(found["adversarial_accuracy"]) == pytest.approx(hits[perturbed].mean())


def test_a_search_in_training_mode_differs_and_leaves_the_statistics():
    model, images, labels = net(normalised=True)
    norm = model.layers[1]
    before = [np.asarray(value) for value in (norm.moving_mean, norm.moving_variance)]

    def after(**options):
        for variable, value in zip((norm.moving_mean, norm.moving_variance), before, strict=True):
            variable.assign(value)
        batch = made(model, images, labels, AdversarialTraining(L2, **options), training=False)
        return batch.x.numpy(), np.asarray(norm.moving_mean)

    inference, mean = after()
    np.testing.assert_array_equal(mean, before[0])
    training, mean = after(mode="training")
    np.testing.assert_array_equal(mean, before[0])
    assert abs(training - inference).max() > 1e-3
    moving, mean = after(mode="training", update_statistics=True)
    assert abs(mean - before[0]).max() > 1e-3
    np.testing.assert_allclose(moving, training, atol=1e-6)


def test_dropout_is_on_in_training_mode_only():
    model, images, labels = net(dropout=0.8)
    inference, again = (made(model, images, labels, AdversarialTraining(L2)) for _ in range(2))
    np.testing.assert_array_equal(inference.x, again.x)
    first, second = (
        made(model, images, labels, AdversarialTraining(L2, mode="training")) for _ in range(2)
    )
    assert (abs(first.x - second.x).numpy() > 1e-3).any()


def test_settings_are_plain_data():
    described = (CrossEntropy() + AdversarialTraining(L2, mix=0.5)).describe()[1]
    assert described["term"] == "adversarial_training"
    again = json.loads(json.dumps(described))
    threat = {**again["threat"], "value_range": tuple(again["threat"]["value_range"])}
    assert ThreatModel(**threat) == L2
    named = AdversarialTraining(L2).named("attacked")
    assert named.accuracy_names == ("adversarial_accuracy",)
    assert not named.has_value
    objective = CrossEntropy() + named
    assert objective.describe()[1]["kind"] == "adversarial_training"
    assert objective.names == ["cross_entropy"]
    model, images, labels = net()
    tensors = {"images": tf.constant(images), "labels": tf.constant(labels)}
    batch = objective.forward(model, tensors, training=False)
    expected = made(model, images, labels, AdversarialTraining(L2)).x
    np.testing.assert_allclose(batch.x, expected, atol=1e-6)
    assert list(objective.accuracies(batch)) == ["adversarial_accuracy"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threat": ThreatModel(norm=2, epsilon=0)}, "epsilon is 0: leave AdversarialTraining out"),
        ({"mix": 1}, "mix must be at least 0 and less than 1, got 1"),
        ({"mix": np.nan}, "mix must be at least 0 and less than 1"),
        ({"mix": -0.1}, "mix must be at least 0"),
        ({"mode": "train"}, 'mode must be "inference" or "training", got \'train\''),
        ({"stop": "late"}, 'stop must be "success" or "last"'),
        ({"update_statistics": True}, 'update_statistics needs mode="training"'),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(InputError, match=message):
        AdversarialTraining(**{"threat": L2, **changes})


def test_a_threat_must_be_a_threat_model():
    with pytest.raises(InputTypeError, match="threat must be a ThreatModel, got float"):
        AdversarialTraining(0.3)


def test_objectives_with_one_search_only():
    one = AdversarialTraining(L2)
    with pytest.raises(InputError, match="one term that perturbs images, not several"):
        CrossEntropy() + one + one.named("second")
    with pytest.raises(InputError, match="one term that perturbs images, not several"):
        CrossEntropy() + one + one


@pytest.mark.parametrize("name", ["clean_images", "perturbed"])
def test_tensors_that_would_be_overwritten(name):
    model, images, labels = net()
    tensors = {"images": tf.constant(images), "labels": tf.constant(labels), name: labels}
    with pytest.raises(InputError, match=f"the data has a tensor '{name}', a name of adversarial"):
        (CrossEntropy() + AdversarialTraining(L2)).forward(model, tensors, training=True)


@pytest.mark.parametrize(("mix", "rows"), [(0.04, 20), (0.96, 20), (0.5, 1)])
def test_a_batch_too_small_to_be_mixed(mix, rows):
    model, images, labels = net()
    with pytest.raises(InputError, match="leaves none clean or none to perturb: choose a larger"):
        made(model, images[:rows], labels[:rows], AdversarialTraining(L2, mix=mix))
