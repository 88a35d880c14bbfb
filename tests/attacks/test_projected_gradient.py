"""Projected gradient descent: what holds for any settings, and what is refused."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.nets import randomise
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrobust.attacks import ThreatModel, pgd, projected_gradient
from tfrobust.attacks.search import build_search
from tfrobust.errors import InputError, TfrobustError
from tfrobust.training import computing_in

layers = keras.layers


@functools.cache
def small_mlp(softmax=False):
    end = [layers.Dense(4), *([layers.Softmax()] if softmax else [])]
    hidden = [layers.Flatten(), layers.Dense(10, activation="relu")]
    return keras.Sequential([keras.Input((3, 3, 1)), *hidden, *end])


def images_in(value_range, rng, count=10):
    """Some of whose pixels lie on the border of the range."""
    low, high = np.float32(value_range)
    return np.clip(rng.normal(0.5, 0.4, (count, 3, 3, 1)), 0, 1).astype("f4") * (high - low) + low


def assert_inside(x, perturbation, epsilon, norm, value_range):
    """In ball and range, but for the rounding of x + perturbation in single precision."""
    low, high = np.float32(value_range)
    rounding = 1.2e-7 * max(abs(low), abs(high))
    assert (x + perturbation >= low - rounding).all()
    assert (x + perturbation <= high + rounding).all()
    flat = perturbation.reshape(len(x), -1).astype(float)
    lengths = np.linalg.norm(flat, ord=norm, axis=1)
    slack = rounding * (1 if norm == np.inf else flat.shape[1] ** 0.5)
    assert (lengths <= epsilon * (1 + 1e-6) + slack).all()


THREATS = st.builds(
    ThreatModel,
    norm=st.sampled_from([2, np.inf]),
    epsilon=st.just(0),
    step_size=st.sampled_from([None, 1e-3, 0.3, 100.0]),
    steps=st.integers(1, 4),
    random_start=st.sampled_from([None, "ball", "image"]),
    order=st.sampled_from(["project_then_clip", "clip_then_project"]),
    value_range=st.sampled_from([(0, 1), (-1, 1), (0, 255), (-123.68, 151.061), (0.1, 0.7)]),
)
OBJECTIVES = st.sampled_from(
    [
        {},
        {"floor": 1e-8},
        {"floor": 2.0},
        {"objective": "carlini_wagner"},
        {"objective": "carlini_wagner", "kappa": 0.0, "rival": "not_below_zero"},
    ]
)


@settings(max_examples=40)
@given(
    threat=THREATS,
    objective=OBJECTIVES,
    stop=st.sampled_from(["success", "last"]),
    targeted=st.booleans(),
    radius=st.floats(1e-3, 1.0),
    seed=st.integers(0, 2**16),
)
def test_every_search_ends_inside_ball_and_range(threat, objective, stop, targeted, radius, seed):
    rng = np.random.default_rng(seed)
    model = randomise(small_mlp(), seed)
    threat = ThreatModel(**{**vars(threat), **objective})
    low, high = threat.value_range
    x = images_in(threat.value_range, rng)
    epsilon = (radius * (high - low) * rng.choice([0, 0.1, 1], len(x))).astype("f4")
    y, seeds = rng.integers(0, 4, len(x)), rng.integers(0, 99, (len(x), 2))
    run = build_search(model, threat, stop, targeted, True)
    change, stalled, losses = run(
        tf.constant(x), tf.constant(y, tf.int32), tf.constant(epsilon), tf.constant(seeds, tf.int32)
    )
    assert_inside(x, change.numpy(), epsilon, threat.norm, threat.value_range)
    assert not change.numpy()[epsilon == 0].any()
    assert stalled.shape == (len(x),)
    assert losses.shape == (len(x), threat.steps + 1)
    assert np.isfinite(losses).all()


@settings(max_examples=4)
@given(
    seed=st.integers(0, 2**16),
    norm=st.sampled_from([2, np.inf]),
    value_range=st.sampled_from([(-1.0, 1.0), (0.0, 255.0)]),
    targeted=st.booleans(),
)
def test_results_are_true(seed, norm, value_range, targeted):
    rng = np.random.default_rng(seed)
    model = randomise(small_mlp(softmax=True), seed)
    low, high = value_range
    x, y = images_in(value_range, rng), rng.integers(0, 4, 10)
    epsilon = rng.choice([0, 0.05, 0.5], 10) * (high - low)
    options = {"value_range": value_range, "targeted": targeted, "random_start": "ball"}
    result = pgd(model, x, y, norm=norm, epsilon=epsilon, steps=3, **options)
    assert_inside(x, result.perturbation, epsilon, norm, value_range)
    predicted = np.asarray(model(np.clip(x + result.perturbation, low, high))).argmax(axis=1)
    np.testing.assert_array_equal(result.adversarial_label, predicted)
    np.testing.assert_array_equal(result.success, (predicted == y) if targeted else predicted != y)
    np.testing.assert_array_equal(result.labels, y)
    assert result.success_rate == result.success.mean()
    frame = result.to_frame()
    flat = result.perturbation.reshape(10, -1).astype(float)
    np.testing.assert_allclose(frame["distance"], np.linalg.norm(flat, norm, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(frame["epsilon"], epsilon.astype("f4"))


@pytest.mark.parametrize(("norm", "step"), [(2, None), (np.inf, 0.02)])
def test_units_do_not_matter(cnn, images, norm, step):
    scaled = keras.Sequential([keras.Input((8, 8, 1)), layers.Rescaling(1 / 255), *cnn.layers])
    options = {"norm": norm, "steps": 6, "random_start": "ball", "restarts": 2}
    plain = pgd(cnn, images, epsilon=0.1, step_size=step, **options)
    options |= {"step_size": step and 255 * step, "value_range": (0, 255)}
    bytes_ = pgd(scaled, images * 255, epsilon=25.5, **options)
    np.testing.assert_allclose(bytes_.perturbation / 255, plain.perturbation, atol=2e-5)
    np.testing.assert_array_equal(bytes_.success, plain.success)
    assert plain.success.any()


def test_success_keeps_the_first_and_last_takes_all_steps(cnn, images):
    def run(**changes):
        options = {"norm": 2, "epsilon": 1.0, "step_size": 0.15, "steps": 6, **changes}
        return pgd(cnn, images, **options)

    first, last = run(), run(stop="last")
    iterates = [run(stop="last", steps=steps) for steps in range(1, 7)]
    left = np.array([iterate.success for iterate in iterates])
    assert (left.argmax(axis=0)[left.any(axis=0)] < 5).any()
    for row in range(len(images)):
        steps = left[:, row].argmax() if left[:, row].any() else -1
        expected = iterates[steps].perturbation[row]
        np.testing.assert_allclose(first.perturbation[row], expected, atol=1e-5)
    np.testing.assert_array_equal(first.success, left.any(axis=0))
    assert (first.distance <= last.distance + 1e-5).all()


def test_restarts_are_for_failures_only(cnn, images, monkeypatch):
    counts = []
    original = projected_gradient.in_batches

    def counted(function, *arrays, **options):
        counts.append(len(arrays[0]))
        return original(function, *arrays, **options)

    monkeypatch.setattr(projected_gradient, "in_batches", counted)
    options = {"norm": 2, "epsilon": 0.3, "step_size": 0.1, "steps": 2, "random_start": "ball"}
    once = pgd(cnn, images, **options)
    assert counts == [24]
    assert 0 < once.success.sum() < 24
    counts.clear()
    more = pgd(cnn, images, restarts=4, **options)
    assert counts[:2] == [24, 24 - once.success.sum()]
    assert counts == sorted(counts, reverse=True)
    assert more.success.sum() > once.success.sum()
    np.testing.assert_array_equal(more.perturbation[once.success], once.perturbation[once.success])
    failed = ~more.success
    differ = (more.perturbation != once.perturbation).any(axis=(1, 2, 3))
    assert differ[failed].all()


def test_the_objective_along_the_search(cnn, images):
    labels = np.asarray(cnn(images)).argmax(axis=1)
    options = {"norm": 2, "epsilon": 0.6, "steps": 5, "stop": "last", "record_loss": True}
    result = pgd(cnn, images, labels, **options)
    assert result.loss.shape == (24, 6)
    for column, x in ((0, images), (5, images + result.perturbation)):
        expected = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, cnn(x))
        np.testing.assert_allclose(result.loss[:, column], expected, rtol=1e-4, atol=1e-6)
    assert (result.loss[:, -1] > result.loss[:, 0]).all()
    away = pgd(cnn, images, labels, objective="carlini_wagner", kappa=0.0, **options)
    np.testing.assert_array_equal(away.loss[:, -1] >= 0, away.success)
    assert pgd(cnn, images[:2], norm=2, epsilon=0.1, steps=2).loss.shape == (2, 0)


def test_a_search_that_has_nothing_left_to_gain_is_no_failure(cnn, images):
    options = {"norm": 2, "epsilon": 1.0, "steps": 8, "stop": "last"}
    result = pgd(cnn, images, objective="carlini_wagner", kappa=0.0, **options)
    assert result.success.any()
    assert not result.zero_gradient.any()


def test_gradients_that_vanish_are_reported(images):
    hidden = layers.Dense(4, activation="relu")
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), hidden, layers.Dense(2)])
    kernel, bias = hidden.get_weights()
    hidden.set_weights([kernel, bias - 1000])  # no unit is active
    model.layers[-1].bias.assign([1, 0])
    for stop in ("success", "last"):
        result = pgd(model, images, norm=np.inf, epsilon=0.1, steps=2, stop=stop)
        assert result.zero_gradient.all()
        assert not result.perturbation.any()
    wrong = pgd(model, images, 1 - result.labels, norm=np.inf, epsilon=0.1, steps=2)
    assert wrong.success.all()
    assert not wrong.zero_gradient.any()


def test_values_that_are_not_numbers_lead_nowhere():
    inputs = keras.Input((1,))
    model = keras.Model(inputs, layers.Dense(2)(keras.ops.sqrt(0.5 - inputs)))
    model.layers[-1].set_weights([np.array([[-1.0, 1.0]]), np.array([0.0, 0.1])])
    x = np.full((1, 1), 0.4, "f4")
    result = pgd(model, x, [0], norm=2, epsilon=0.3, steps=1, stop="last", targeted=True)
    assert np.isnan(model(x + result.perturbation)).all()
    assert not result.success.any()
    assert not result.zero_gradient.any()
    x = np.full((1, 1), 0.5, "f4")  # where the slope is infinite
    result = pgd(model, x, [0], norm=2, epsilon=0.3, steps=1, stop="last", targeted=True)
    assert result.zero_gradient.all()
    assert not result.perturbation.any()


@pytest.fixture
def half_and_full():
    """A network in half precision, the same one in single precision, and examples near a tie."""
    keras.utils.set_random_seed(0)
    full = keras.Sequential([keras.Input((30,)), layers.Dense(20, "relu"), layers.Dense(3)])
    with computing_in("mixed_bfloat16"):
        # without keras.Input, Keras casts the images too
        half = keras.Sequential([layers.Dense(20, "relu"), layers.Dense(3)])
    half.build((None, 30))
    half.set_weights(full.get_weights())
    x = np.random.default_rng(1).uniform(0.2, 0.8, (3000, 30)).astype("f4")
    logits = np.sort(full(x), axis=1)
    return half, full, x[np.argsort(logits[:, -1] - logits[:, -2])[:150]]


@pytest.mark.parametrize("norm", [2, np.inf])
def test_success_in_half_precision_is_decided_in_single_precision(half_and_full, norm):
    half, full, x = half_and_full
    labels = np.asarray(full(x)).argmax(axis=1)
    assert (np.asarray(half(x)).argmax(axis=1) != labels).any()
    nothing = pgd(half, x, norm=norm, epsilon=0, steps=1)
    np.testing.assert_array_equal(nothing.labels, labels)
    assert not nothing.success.any()
    epsilon = 0.02 if norm == 2 else 0.004
    result = pgd(half, x, norm=norm, epsilon=epsilon, steps=5)
    changed = np.asarray(full(np.clip(x + result.perturbation, 0, 1))).argmax(axis=1)
    np.testing.assert_array_equal(result.adversarial_label, changed)
    np.testing.assert_array_equal(result.success, changed != labels)
    assert 0.1 < result.success_rate < 1
    assert abs(pgd(full, x, norm=norm, epsilon=epsilon, steps=5).success_rate - 0.5) < 0.5


def test_half_precision_inside_a_subclassed_model_is_noticed():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = layers.Dense(8, dtype="mixed_bfloat16")
            self.last = layers.Dense(2)

        def call(self, x):
            return self.last(self.first(x))

    model = Net()
    x = np.random.default_rng(0).random((20, 4)).astype("f4")
    model(x)
    kernel = 0.05 * model.last.get_weights()[0]
    model.last.set_weights([kernel, np.array([100.0, 100.3])])  # further apart than float32 rounds
    result = pgd(model, x, np.zeros(20), norm=2, epsilon=0.1, steps=2)
    assert result.success.all()
    assert result.perturbation.any(axis=1).all()  # for a lead that bfloat16 cannot have rounded


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": -1}, "epsilon must be at least 0 and finite, got -1"),
        ({"epsilon": np.nan}, "epsilon must be at least 0 and finite, got nan"),
        ({"epsilon": None}, "epsilon must be at least 0 and finite, got None"),
        ({"epsilon": "1"}, "epsilon must be at least 0 and finite, got '1'"),
        ({"epsilon": [[1], [1, 2]]}, "epsilon must be at least 0 and finite"),
        ({"epsilon": 1.1, "norm": np.inf}, "epsilon 1.1 exceeds 1, the largest distance.*in the u"),
        ({"epsilon": 8.1}, "epsilon 8.1 exceeds 8"),
        ({"epsilon": np.ones(3)}, r"epsilon must be a number or have shape \(24,\), got shape \(3"),
        ({"epsilon": np.append(np.ones(23), -1)}, "epsilon must be at least 0 and finite"),
        ({"y": np.eye(5)[[0] * 24]}, "y must have shape .*Give class indices, not one-hot rows"),
        ({"y": np.full(24, 5)}, "y must lie in 0..4 for 5 classes"),
        ({"y": np.full(24, 0.5)}, "y must be whole numbers"),
        ({"targeted": True}, "a targeted attack needs y, the classes to reach"),
        ({"restarts": 2}, '2 restarts from the same start are equal: set random_start="ball"'),
        ({"restarts": 0, "random_start": "ball"}, "restarts must be a whole number of at least 1"),
        ({"value_range": (0, 0.5)}, "outside value_range .*give the range of the model's input"),
        ({"value_range": (1, 0)}, "value_range must be"),
        ({"stop": "first"}, 'stop must be "success" or "last", got \'first\''),
        ({"norm": 1}, "norm must be one of 2, inf, got 1"),
        ({"objective": "hinge"}, "objective must be one of 'cross_entropy', 'carlini_wagner'"),
        ({"rival": "all"}, "rival must be one of"),
        ({"order": "clip"}, "order must be one of"),
        ({"random_start": "normal"}, "random_start must be one of None, 'ball', 'image'"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"step_size": 0}, "step_size must be positive and finite"),
        ({"kappa": -1}, "kappa must be at least 0"),
        ({"floor": np.inf}, "floor must be at least 0 and finite"),
        ({"floor": 1, "objective": "carlini_wagner"}, "floor is a setting of the cross-entropy"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_bad_input(cnn, images, changes, message):
    changes = {"norm": 2, "epsilon": 0.1, **changes}
    with pytest.raises(InputError, match=message):
        pgd(cnn, images, changes.pop("y", None), **changes)


def test_a_model_without_logits(images):
    hidden = [layers.Flatten(), layers.Dense(3, activation="sigmoid")]
    with pytest.raises(TfrobustError, match="not logits"):
        pgd(keras.Sequential([keras.Input((8, 8, 1)), *hidden]), images, norm=2, epsilon=0.1)
