"""Where searches start: distributions, and what the numbers depend on."""

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from tfrobust.attacks import ThreatModel, draws_of_batch, pgd, start_at

layers = keras.layers
FAR = (-100.0, 100.0)
# a step that does not change what it is added to
NO_STEP = {"step_size": 1e-12, "steps": 1, "stop": "last"}


@pytest.fixture(scope="module")
def model():
    return keras.Sequential([keras.Input((3,)), layers.Dense(2)])


def starts(model, x, norm, epsilon, random_start="ball", **options):
    options = {"value_range": FAR, "random_start": random_start, **NO_STEP, **options}
    return pgd(model, x, norm=norm, epsilon=epsilon, batch_size=2000, **options).perturbation


def some_starts(model, kind, norm):
    """2,000 of them within 2 of zero, as attacks or as training draws them."""
    if kind == "attack":
        return starts(model, np.zeros((2000, 3)), norm, 2.0)
    threat = ThreatModel(norm=norm, epsilon=2, random_start="ball", value_range=FAR)
    x, radii = tf.zeros([2000, 3]), tf.fill([2000], 2.0)
    draws = draws_of_batch(threat, x, tf.constant([3, 4]))
    return start_at(threat, x, radii, *draws).numpy()


def assert_uniform(values, low, high):
    assert scipy.stats.kstest(values, scipy.stats.uniform(low, high - low).cdf).pvalue > 0.01


@pytest.mark.parametrize("kind", ["attack", "training"])
def test_l2_starts_are_uniform_in_the_ball(model, kind):
    changes = some_starts(model, kind, 2)
    lengths = np.linalg.norm(changes, axis=1)
    assert (lengths <= 2 * (1 + 1e-6)).all()
    assert_uniform((lengths / 2) ** 3, 0, 1)
    for column in (changes / lengths[:, None]).T:  # Archimedes
        assert_uniform(column, -1, 1)
    assert abs(np.corrcoef(lengths, changes[:, 0])[0, 1]) < 0.06
    assert abs(np.corrcoef(changes.T) - np.eye(3)).max() < 0.06


@pytest.mark.parametrize("kind", ["attack", "training"])
def test_linf_starts_are_uniform_in_the_cube(model, kind):
    changes = some_starts(model, kind, np.inf)
    for column in changes.T:
        assert_uniform(column, -2, 2)
    assert abs(np.corrcoef(changes.T) - np.eye(3)).max() < 0.06


def test_starts_are_clipped_to_the_range(model):
    x = np.array([[0, 1, 0.5]] * 50)
    for norm in (2, np.inf):
        changed = x + starts(model, x, norm, 0.9, value_range=(0, 1))
        assert changed.min() >= 0
        assert changed.max() <= 1 + 1e-7
        assert (changed == 0).any()


@pytest.mark.parametrize("norm", [2, np.inf])
def test_image_starts_are_uniform_images_projected(model, norm):
    x = np.tile(np.array([[0.2, 0.7, 0.5]], "f4"), (2000, 1))
    largest = 1.0 if norm == np.inf else 3**0.5  # no image is outside this ball
    options = {"random_start": "image", "value_range": (0, 1)}
    images = x + starts(model, x, norm, largest, **options)
    for column in images.T:
        assert_uniform(column, 0, 1)
    projected = starts(model, x, norm, 0.3, **options)
    change = images - x
    if norm == np.inf:
        expected = np.clip(change, -0.3, 0.3)
    else:
        lengths = np.linalg.norm(change, axis=1, keepdims=True)
        expected = change * np.minimum(1, 0.3 / lengths)
        assert (lengths > 0.3).mean() > 0.7  # most starts are on the sphere
    np.testing.assert_allclose(projected, expected, atol=1e-6)


def differ(some, others):
    """For each example, by more than the steps do."""
    return (abs(some - others) > 1e-9).any(axis=(1, 2, 3))


def test_starts_depend_on_example_restart_and_seed_only(cnn, images):
    labels = np.asarray(cnn(images)).argmax(axis=1)
    for norm, kind in ((2, "ball"), (np.inf, "ball"), (2, "image")):
        options = {"norm": norm, "random_start": kind, **NO_STEP}

        def run(count=24, **changes):
            changes = {"epsilon": 0.001, **options, **changes}
            return pgd(cnn, images[:count], labels[:count], **changes).perturbation

        whole = run()
        assert len(np.unique(whole.reshape(24, -1), axis=0)) == 24
        assert not differ(run(batch_size=7), whole).any()
        assert not differ(run(count=5), whole[:5]).any()
        for other in (run(seed=1), run(restarts=2), run(restarts=3)):
            assert differ(other, whole).all()
        assert differ(run(restarts=2), run(restarts=3)).all()
        # an epsilon for each example changes those of no other
        radii = np.where(np.arange(24) < 6, 0.002, 0.001)
        np.testing.assert_array_equal(differ(run(epsilon=radii), whole), np.arange(24) < 6)


def test_training_draws_other_numbers_in_every_step():
    threat = ThreatModel(norm=2, epsilon=1, random_start="ball")
    x = tf.zeros([4, 3])
    fields = [draws_of_batch(threat, x, tf.constant([7, step]))[0].numpy() for step in (0, 1, 0)]
    assert (fields[0] != fields[1]).all()
    np.testing.assert_array_equal(fields[0], fields[2])
