"""Projected gradient descent against closed forms, a NumPy version, and Foolbox's."""

import foolbox
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import numpy_search
from helpers.nets import double_precision, randomise

from tfrobust import data, training
from tfrobust.attacks import ThreatModel, pgd, search
from tfrobust.objectives import CrossEntropy

layers = keras.layers
FAR = (-50.0, 50.0)


def towards_the_other_class(labels, normal, norm):
    """The step of length 1 that lowers the margin of a linear model most."""
    direction = np.sign(normal) if norm == np.inf else normal / np.linalg.norm(normal)
    return np.where(labels == 0, 1, -1)[:, None] * direction


@pytest.mark.parametrize("objective", ["cross_entropy", "carlini_wagner"])
@pytest.mark.parametrize("norm", [2, np.inf])
def test_linear_models_are_left_from_the_exact_radius_on(linear, norm, objective):
    model, x, normal, margin = linear
    if objective == "cross_entropy":
        model = keras.Sequential([model, layers.Softmax()])
    exact = margin / np.linalg.norm(normal, ord=1 if norm == np.inf else 2)
    settings = {"norm": norm, "objective": objective, "steps": 5, "value_range": FAR}
    inside = pgd(model, x, epsilon=exact * 0.999, stop="last", **settings)
    assert not inside.success.any()
    np.testing.assert_array_equal(inside.adversarial_label, inside.labels)
    assert not inside.zero_gradient.any()
    towards = towards_the_other_class(inside.labels, normal, norm)
    found = inside.perturbation.reshape(16, 36)
    np.testing.assert_allclose(found, towards * inside.epsilon[:, None], rtol=2e-4, atol=1e-6)
    outside = pgd(model, x, epsilon=exact * 1.001, **settings)
    assert outside.success.all()
    np.testing.assert_array_equal(outside.adversarial_label, 1 - outside.labels)


def test_a_target_of_a_linear_model_is_reached_from_the_exact_radius_on(linear):
    model, x, normal, margin = linear
    labels = pgd(model, x, norm=2, epsilon=0).labels
    exact = margin / np.linalg.norm(normal)
    for objective in ("cross_entropy", "carlini_wagner"):
        for factor, reached in ((0.999, False), (1.001, True)):
            settings = {"steps": 5, "value_range": FAR, "targeted": True, "objective": objective}
            result = pgd(model, x, 1 - labels, norm=2, epsilon=factor * exact, **settings)
            assert (result.success == reached).all()
            # the class that it has is reached without a step
            stays = pgd(model, x, labels, norm=2, epsilon=factor * exact, **settings)
            assert stays.success.all()
            assert not stays.perturbation.any()


@pytest.mark.parametrize(
    ("floor", "moves"), [(0.0, True), (1e-8, False)], ids=["no floor", "floor"]
)
@pytest.mark.parametrize("norm", [2, np.inf])
def test_only_a_floor_lets_confident_examples_stand_still(linear, norm, floor, moves):
    model, x, normal, _ = linear
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel, bias + np.array([200, 0], "float32")])
    result = pgd(model, x, norm=norm, epsilon=0.1, floor=floor, steps=3, value_range=FAR)
    assert (result.labels == 0).all()
    np.testing.assert_array_equal(result.zero_gradient, not moves)
    if moves:
        towards = towards_the_other_class(result.labels, normal, norm)
        np.testing.assert_allclose(
            result.perturbation.reshape(16, 36), 0.1 * towards, rtol=1e-4, atol=1e-5
        )
    else:
        assert not result.perturbation.any()


def two_layers(offset=0.0):
    """A Keras model of two layers in double precision, and the same in NumPy."""
    with double_precision():
        head = [layers.Dense(6, activation="tanh"), layers.Dense(4)]
        model = randomise(keras.Sequential([keras.Input((5,), dtype="float64"), *head]), 1)
    kernel, bias, last, end = model.get_weights()
    model.layers[-1].set_weights([last, end + offset])
    return model, numpy_search.TwoLayers(kernel, bias, last, end + offset)


CASES = [
    {},
    {"step_size": 0.0625, "order": "clip_then_project"},
    {"floor": 0.3},  # some gradients are longer, some are not
    {"floor": 1e-8, "order": "clip_then_project"},
    {"objective": "carlini_wagner"},
    {"objective": "carlini_wagner", "kappa": 0.2},  # reached by some examples on their way
    {"objective": "carlini_wagner", "rival": "not_below_zero"},
    {"objective": "carlini_wagner", "rival": "not_below_zero", "kappa": 1.5},
]


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", [2, np.inf])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_iterates_are_those_of_numpy(case, norm, targeted, rng):
    offset = -1.5 if "rival" in case else 0.0  # where many logits are below zero
    model, net = two_layers(offset)
    x, start = rng.uniform(0.1, 0.9, (12, 5)), rng.uniform(-0.05, 0.05, (12, 5))
    y, epsilon = rng.integers(0, 4, 12).astype("int32"), rng.uniform(0.1, 0.6, 12)
    threat = ThreatModel(norm=norm, epsilon=0, steps=6, **case)
    changes, losses = numpy_search.search(
        net, x, y, epsilon, start, threat=threat, targeted=targeted
    )
    arguments = map(tf.constant, (x, y, epsilon, start))
    found, stalled, recorded = search(
        model, threat, *arguments, stop="last", targeted=targeted, record_loss=True
    )
    np.testing.assert_allclose(found, changes[-1], atol=1e-9)
    np.testing.assert_allclose(recorded, losses, rtol=1e-9, atol=1e-12)
    if case.get("kappa") == 0.2:  # both kinds of examples are among them
        assert 0 < (losses[:, -1] == 0).sum() < 12
    if "rival" in case:
        assert (net.logits(x).max(axis=1) < 0).any()
    else:  # that the search gains nothing beyond kappa is no failure
        assert not stalled.numpy().any()


def test_the_first_success_is_numpys_first_iterate_in_another_class(rng):
    model, net = two_layers()
    x = rng.uniform(0.1, 0.9, (12, 5))
    y, epsilon = net.logits(x).argmax(axis=1).astype("int32"), np.full(12, 1.0)
    threat = ThreatModel(norm=2, epsilon=0, steps=12, value_range=(-1, 2))
    changes, losses = numpy_search.search(net, x, y, epsilon, 0 * x, threat=threat)
    left = np.array([net.logits(x + change).argmax(axis=1) != y for change in changes])
    assert left.any(axis=0).sum() > 3
    first = np.where(left.any(axis=0), left.argmax(axis=0), threat.steps)
    found, _, recorded = search(
        model, threat, *map(tf.constant, (x, y, epsilon, 0 * x)), stop="success", record_loss=True
    )
    np.testing.assert_allclose(found, changes[first, np.arange(12)], atol=1e-9)
    steps = np.minimum(np.arange(13), first[:, None])  # an example that has left stays
    np.testing.assert_allclose(recorded, np.take_along_axis(losses, steps, axis=1), rtol=1e-9)


@pytest.fixture(scope="module")
def digits():
    """A network trained on digits, and images that it has not seen."""
    some = data.load("digits").take(1190)
    images = some.images[:, ::2, ::2]
    keras.utils.set_random_seed(0)
    head = [layers.Flatten(), layers.Dense(48, activation="relu"), layers.Dense(10)]
    model = keras.Sequential([keras.Input(images.shape[1:]), *head])
    training.fit(
        model,
        (images[:950], some.labels[:950]),
        CrossEntropy(),
        optimizer=keras.optimizers.Adam(3e-3),
        epochs=8,
        batch_size=50,
        progress=False,
    )
    x, y = images[950:], some.labels[950:]
    assert (np.asarray(model(x)).argmax(axis=1) == y).mean() > 0.8
    return model, x, y


@pytest.mark.parametrize(
    ("norm", "radii", "attack"),
    [
        (2, (0.2, 0.5, 1.0), foolbox.attacks.L2ProjectedGradientDescentAttack),
        (np.inf, (0.02, 0.05, 0.1), foolbox.attacks.LinfProjectedGradientDescentAttack),
    ],
)
def test_as_strong_as_foolbox(digits, norm, radii, attack):
    model, x, y = digits
    step = radii[-1] / 8
    theirs = attack(abs_stepsize=step, steps=10, random_start=False)
    wrapped = foolbox.TensorFlowModel(model, bounds=(0, 1), device=tf.constant(x).device)
    labels = tf.constant(y, tf.int64)  # Foolbox's own dtype of class indices
    _, images, success = theirs(wrapped, tf.constant(x), labels, epsilons=radii)
    rates = []
    for radius, changed, fooled in zip(radii, images, success.numpy(), strict=True):
        ours = pgd(model, x, y, norm=norm, epsilon=radius, step_size=step, steps=10, stop="last")
        assert abs(ours.success_rate - fooled.mean()) <= 0.005
        same = np.isclose(x + ours.perturbation, changed, atol=1e-4).mean(axis=(1, 2, 3))
        assert np.mean(same == 1) > 0.95
        rates.append(ours.success_rate)
    assert rates == sorted(rates)
    assert rates[-1] > rates[0] + 0.2
