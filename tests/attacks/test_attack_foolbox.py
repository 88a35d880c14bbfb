"""The bridge: Foolbox's attacks against exact distances and Foolbox called by itself."""

import foolbox
import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrobust.attacks import minimal
from tfrobust.attacks.foolbox import bridge
from tfrobust.attacks.foolbox.bridge import FoolboxError, _radius_trial, attack_names
from tfrobust.attacks.foolbox.smallest_radius import smallest_radius


@pytest.mark.parametrize(
    ("attack", "settings", "tolerance"),
    [
        ("deepfool", {}, 0.04),  # overshoots by 2 %
        pytest.param(
            "carlini_wagner",
            {"steps": 120, "binary_search_steps": 6},
            0.06,
            marks=pytest.mark.slow,
        ),
        ("basic_iterative", {}, 0.01),
        ("basic_iterative", {"bisection_steps": 14}, 0.001),
        pytest.param("L2PGD", {"steps": 20, "rel_stepsize": 0.2}, 0.05, marks=pytest.mark.slow),
        ("DDNAttack", {}, 0.03),
    ],
)
def test_close_to_the_hyperplane(linear, attack, settings, tolerance):
    model, x, normal, margin = linear
    exact = margin / np.linalg.norm(normal)
    far = exact > 0.02
    result = minimal(model, x[far], attack, **settings)
    assert result.success.all()
    assert (result.distance >= exact[far] * (1 - 1e-4)).all()
    np.testing.assert_array_less(result.distance, exact[far] * (1 + tolerance))


def test_other_norms(linear):
    model, x, normal, margin = linear
    linf = minimal(model, x, "FGSM", norm=np.inf, bisection_steps=14)
    np.testing.assert_allclose(linf.distance, margin / np.abs(normal).sum(), rtol=1e-3)
    # the l-infinity attack's own perturbation, measured in another norm
    l2 = minimal(model, x, "FGSM", norm=2, bisection_steps=14)
    np.testing.assert_allclose(l2.distance, 6 * linf.distance, rtol=1e-3)


def test_agrees_with_our_fast_gradient_sign(cnn, images):
    theirs = minimal(cnn, images, "FGSM", norm=np.inf, bisection_steps=14)
    ours = minimal(cnn, images, "fast_gradient_sign", norm=np.inf, max_epsilon=1.0, steps=24)
    both = theirs.success & ours.success
    assert both.mean() > 0.8
    # either may settle at another crossing where success is not monotone
    close = np.isclose(theirs.distance[both], ours.distance[both], rtol=1e-3)
    assert close.mean() > 0.9


@pytest.mark.parametrize(
    "name",
    [
        "L1BasicIterativeAttack",
        "L2BasicIterativeAttack",
        "LinfBasicIterativeAttack",
        "MIFGSM",
        "L2AdamPGD",
    ],
)
def test_radius_per_example_is_foolbox_one_by_one(cnn, images, name):
    made = getattr(foolbox.attacks, name)
    settings = {"random_start": False, "steps": 5}
    rows = tf.constant(images[:6])
    labels = tf.argmax(cnn(rows), axis=1, output_type=tf.int32)
    radii = np.geomspace(0.05, 1.0, 6) * (5 if name.startswith("L1") else 1)

    seen = {}

    def spy(try_radius, x, classes, p, value_range, *, bisection_steps):
        seen["images"], seen["success"] = try_radius(x, classes, radii)
        return seen["images"], seen["success"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bridge, "smallest_radius", spy)
        run = bridge.foolbox_attack(made, cnn, images, (0.0, 1.0), 2, **settings)
        run(rows, labels)

    eager = foolbox.TensorFlowModel(cnn, bounds=(0, 1), device="/CPU:0")
    for row, radius in enumerate(radii):
        alone, _, success = made(**settings)(
            eager,
            rows[row : row + 1],
            tf.cast(labels[row : row + 1], tf.int64),
            epsilons=float(radius),
        )
        np.testing.assert_allclose(seen["images"][row], alone[0], atol=2e-4)
        assert bool(seen["success"][row]) == bool(success[0])


@pytest.mark.parametrize("name", ["L1PGD", "L2PGD", "LinfPGD"])
def test_random_starts_stay_within_each_radius(cnn, images, name):
    made = getattr(foolbox.attacks, name)(steps=2, rel_stepsize=2.0, random_start=True)
    wrapped = foolbox.TensorFlowModel(cnn, bounds=(0, 1), device="/CPU:0")
    try_radius = _radius_trial(type(made), made, wrapped, lambda rows: cnn(rows, training=False))
    rows = tf.constant(images[:6])
    labels = tf.argmax(cnn(rows), axis=1, output_type=tf.int32)
    radii = np.geomspace(0.01, 0.5, 6)
    shifted, _ = try_radius(rows, labels, radii)
    change = (shifted - rows).numpy().reshape(6, -1)
    lengths = np.linalg.norm(change, ord=made.distance.p, axis=1)
    assert (lengths <= radii * (1 + 1e-4)).all()
    assert (lengths > radii * 0.2).all()


def test_groups_by_radius_where_an_attack_takes_one_epsilon(linear):
    model, x, *_ = linear
    for name in (
        "SparseL1DescentAttack",
        "L2ContrastReductionAttack",
        "L2AdditiveGaussianNoiseAttack",
    ):
        result = minimal(model, x[:3], name, norm=2, bisection_steps=2)
        assert result.attack == name
        assert np.isfinite(result.distance[result.success]).all()


def test_descent_does_not_stand_still_on_a_saturated_classifier(cnn, images):
    sharp = keras.Sequential([cnn, keras.layers.Rescaling(1e4)])
    assert minimal(sharp, images[:8], "basic_iterative").success.all()


def test_nothing_found_is_not_an_all_zero_image(linear):
    model, x, *_ = linear
    # with no strength in the loss nothing is found; Foolbox then returns black images, which
    # this model takes for the other class
    model.layers[-1].set_weights([model.layers[-1].get_weights()[0], np.array([0, 1e-3], "f4")])
    labels = np.zeros(16, np.int32)
    result = minimal(
        model,
        x,
        "carlini_wagner",
        labels=labels,
        steps=1,
        binary_search_steps=1,
        initial_const=1e-12,
    )
    attacked = np.argmax(model(x), axis=1) == 0
    assert attacked.any()
    assert np.argmax(model(np.zeros((1, 6, 6, 1), np.float32))) == 1
    assert not result.success[attacked].any()


@pytest.mark.parametrize("threshold", [1e-5, 0.3, 5.0])
def test_bisection_of_a_known_radius(threshold):
    x = np.zeros((3, 10, 10, 1), np.float32)
    thresholds = threshold * np.array([1.0, 1.5, 4.0])
    calls = []

    def try_radius(rows, labels, radius):
        calls.append(len(radius))
        shifted = np.zeros(rows.shape, np.float32)
        shifted[:, 0, 0, 0] = radius
        return shifted, radius >= thresholds[labels.numpy()]

    best, has_adversarial = smallest_radius(
        try_radius, tf.constant(x), tf.range(3), 2, (0.0, 1.0), bisection_steps=8
    )
    reachable = thresholds <= 10  # the box's diameter
    np.testing.assert_array_equal(has_adversarial, reachable)
    radius = best[reachable, 0, 0, 0]
    assert (radius >= thresholds[reachable] * (1 - 1e-6)).all()
    assert (radius <= thresholds[reachable] * (1 + 2.0**-7)).all()
    assert len(calls) < 40


def test_attack_names_are_foolbox_classes():
    names = attack_names()
    assert {"LinfPGD", "L2CarliniWagnerAttack", "L2FMNAttack", "DDNAttack"} <= set(names)
    assert "Attack" not in names


def test_what_foolbox_cannot_do_is_said(linear):
    with pytest.raises(FoolboxError, match=r"GenAttack failed with ValueError: unsupported crit"):
        minimal(linear[0], linear[1][:2], "GenAttack", steps=1)
