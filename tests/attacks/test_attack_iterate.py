"""Iterated perturbations: against `minimal` step by step, and on a line where all is known."""

import keras
import numpy as np
import pytest
from matplotlib.image import imread

from tfrobust import figures
from tfrobust.attacks import IteratedPerturbation, iterate, minimal


@pytest.mark.parametrize("attack", ["fast_gradient_sign", "fast_gradient_value", "gradient"])
@pytest.mark.parametrize("overshoot", [0.0, 1.5])
def test_each_step_is_minimal_from_the_last_image(cnn, images, attack, overshoot):
    x = images[:5]
    result = iterate(cnn, x, attack, steps=4, overshoot=overshoot, batch_size=3)
    np.testing.assert_array_equal(result.images[:, 0], x)
    for t in range(5):
        np.testing.assert_array_equal(result.labels[:, t], np.argmax(cnn(result.images[:, t]), 1))
    assert result.success.any()
    for t in range(4):
        before, after = result.images[:, t], result.images[:, t + 1]
        step = minimal(cnn, before, attack, labels=result.labels[:, t])
        alive = result.success[:, t]
        np.testing.assert_array_equal(alive, step.success & result.success[:, :t].all(axis=1))
        shifted = np.clip(before + (1 + overshoot) * step.perturbation, 0, 1)
        np.testing.assert_allclose(after[alive], shifted[alive], atol=1e-5)
        np.testing.assert_array_equal(after[~alive], before[~alive])
        length = np.linalg.norm((after - before).reshape(5, -1), axis=1)
        np.testing.assert_allclose(result.step_distance[alive, t], length[alive], rtol=1e-5)
        assert np.isinf(result.step_distance[~alive, t]).all()
        if overshoot == 0:
            assert (result.labels[alive, t + 1] != result.labels[alive, t]).all()
    total = np.linalg.norm((result.images - x[:, None]).reshape(5, 5, -1), axis=2)
    np.testing.assert_allclose(result.distance, total, rtol=1e-5, atol=1e-7)


def on_a_line():
    """One pixel, whose class is 0, 1, 2 below .25, below .5 and above."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3)])
    model.layers[-1].set_weights([np.array([[0, 4, 12]], "f4"), np.array([0, -1, -5], "f4")])
    return model


def test_on_a_line():
    model, x = on_a_line(), np.array([[0.05], [0.15]], np.float32)
    still = iterate(model, x, "fast_gradient_value", steps=5)
    np.testing.assert_array_equal(still.labels, [[0, 1, 0, 1, 0, 1]] * 2)
    np.testing.assert_allclose(still.step_distance[:, 0], [0.2, 0.1], atol=1e-4)
    assert (still.step_distance[:, 1:] < 1e-4).all()

    # back from .35 over .25 by twice the distance, and so on: steps of the same length
    swinging = iterate(model, x[1:], "fast_gradient_value", steps=4, overshoot=1.0)
    np.testing.assert_array_equal(swinging.labels, [[0, 1, 0, 1, 0]])
    np.testing.assert_allclose(swinging.step_distance, 0.2, atol=1e-4)
    np.testing.assert_allclose(swinging.distance, [[0, 0.2, 0, 0.2, 0]], atol=1e-4)


def test_away_from_the_original_class_stops_at_the_first_adversarial(cnn, images):
    result = iterate(cnn, images[:6], steps=3, away_from="original", max_epsilon=0.02)
    first = minimal(cnn, images[:6], "fast_gradient_sign", max_epsilon=0.02)
    np.testing.assert_array_equal(result.success, np.repeat(first.success[:, None], 3, axis=1))
    assert first.success.any() and not first.success.all()
    for t in (1, 2, 3):
        np.testing.assert_allclose(result.images[:, t], images[:6] + first.perturbation, atol=1e-6)
    assert (result.step_distance[first.success, 1:] == 0).all()
    assert (result.distance[~first.success] == 0).all()


def test_settings_reach_the_attack(cnn, images):
    coarse = iterate(cnn, images[:4], steps=1, attack_steps=2, max_epsilon=0.4, norm=np.inf)
    direct = minimal(cnn, images[:4], "fast_gradient_sign", steps=2, max_epsilon=0.4, norm=np.inf)
    np.testing.assert_allclose(coarse.step_distance[:, 0], direct.distance, rtol=1e-5)
    assert coarse.norm == np.inf


def test_pixels_of_another_range(cnn, images):
    wide = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / 255), cnn])
    plain = iterate(cnn, images[:4], steps=2, overshoot=1.0)
    result = iterate(wide, images[:4] * 255, steps=2, overshoot=1.0, value_range=(0, 255))
    assert result.images.min() >= 0 and result.images.max() <= 255
    np.testing.assert_allclose(result.distance[:, 1], 255 * plain.distance[:, 1], rtol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be a whole number of at least 1, got 0"),
        ({"steps": np.nan}, ValueError, "steps must be a whole number of at least 1, got nan"),
        ({"steps": np.inf}, ValueError, "steps must be a whole number .* got inf"),
        ({"steps": 2.5}, ValueError, "steps must be a whole number .* got 2.5"),
        ({"steps": "3"}, ValueError, "steps must be a whole number .* got '3'"),
        ({"attack_steps": np.nan}, ValueError, "steps must be a whole number .* 0, got nan"),
        ({"value_range": (0, 1, 2)}, ValueError, r"value_range must be .* got \(0, 1, 2\)"),
        ({"value_range": 1}, ValueError, r"value_range must be \(minimum, maximum\), got 1"),
        ({"away_from": "first"}, ValueError, "away_from must be .* got 'first'"),
        ({"overshoot": -1}, ValueError, "overshoot must be finite and not negative, got -1"),
        ({"labels": [0] * 24}, TypeError, "takes no labels: see away_from"),
        ({"attack": "foo"}, ValueError, "unknown attack 'foo'"),
        ({"epsilons": 3}, TypeError, "has no setting epsilons"),
        ({"norm": 3}, ValueError, "norm must be 1, 2 or infinity, got 3"),
        ({"value_range": (0, 0.1)}, ValueError, "outside value_range"),
    ],
)
def test_bad_arguments(cnn, images, arguments, error, message):
    with pytest.raises(error, match=message):
        iterate(cnn, images, **arguments)


def iterated_result(steps=3, shape=(6, 6, 1), success_after_first=True):
    count = steps + 1
    success = np.ones((2, steps), bool)
    success[1, 1:] = success_after_first
    return IteratedPerturbation(
        images=np.random.default_rng(0).uniform(0, 1, (2, count, *shape)).astype(np.float32),
        labels=np.arange(2 * count, dtype=np.int32).reshape(2, count) % 3,
        step_distance=np.where(success, np.float32(0.5), np.float32(np.inf)),
        distance=np.linspace(0, 1, 2 * count, dtype=np.float32).reshape(2, count),
        success=success,
        norm=2.0,
        attack="fast_gradient_sign",
        away_from="current",
    )


def test_table():
    frame = iterated_result(success_after_first=False).to_frame()
    assert frame["example"].tolist() == [0] * 4 + [1] * 4
    assert frame["step"].tolist() == [0, 1, 2, 3] * 2
    assert frame["label"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert frame["step_distance"].tolist() == [0, 0.5, 0.5, 0.5, 0, 0.5, np.inf, np.inf]
    assert frame["success"].tolist() == [True] * 6 + [False] * 2
    assert frame["distance"].iloc[-1] == 1.0
    assert set(frame["attack"]) == {"fast_gradient_sign"}


@pytest.mark.parametrize("shape", [(6, 6, 1), (6, 6, 3)])
def test_picture(tmp_path, monkeypatch, shape):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, *_: drawn.append(figure))
    result = iterated_result(steps=5, shape=shape, success_after_first=False)
    figures.iterated_perturbation(result, "p.png", class_names=["ash", "bay", "elm"], most=3)
    (figure,) = drawn
    rows = np.array(figure.axes).reshape(2, 5)
    # steps 0, 2, 3, 5 and what was added
    titles = [axis.get_title() for axis in rows[1]]
    names = ["ash", "bay", "elm"]
    steps = (0, 2, 3, 5)
    expected = [f"{names[result.labels[1, t]]}\nnone found" for t in steps]
    expected[0] = f"{names[result.labels[1, 0]]}\n{result.distance[1, 0]:.3g}"
    assert titles == [*expected, "added\nin all"]
    for axis, t in zip(rows[0], steps, strict=False):
        shown = result.images[0, t] if shape[-1] == 3 else result.images[0, t, ..., 0]
        np.testing.assert_array_equal(axis.images[0].get_array(), shown)
    total = (result.images[0, -1] - result.images[0, 0]).sum(axis=-1)
    np.testing.assert_allclose(rows[0, -1].images[0].get_array(), total, rtol=1e-6)


def test_picture_with_a_row_of_perturbations(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, *_: drawn.append(figure))
    result = iterated_result(steps=4, shape=(6, 6, 3))
    figures.iterated_perturbation(result, "p.png", most=2, perturbations=True)
    rows = np.array(drawn[0].axes).reshape(2 * len(result.images), 3)
    for row, images in enumerate(result.images):
        expected = [images[4] - images[0], images[2] - images[0], images[4] - images[2]]
        for axis, change in zip(rows[2 * row + 1], expected, strict=True):
            found = axis.images[0].get_array()
            np.testing.assert_allclose(found, change.sum(axis=-1), rtol=1e-6)
        np.testing.assert_array_equal(rows[2 * row, 1].images[0].get_array(), images[2])


def test_picture_is_written(tmp_path):
    path = figures.iterated_perturbation(iterated_result(), tmp_path / "new" / "walk.png")
    assert path == tmp_path / "new" / "walk.png"
    assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    picture = imread(path)
    assert picture.shape[1] > picture.shape[0] > 100
    assert picture.std() > 0.05


def test_picture_of_what_makes_no_sense(tmp_path):
    with pytest.raises(ValueError, match=r"only images .* got examples of shape \(4,\)"):
        figures.iterated_perturbation(iterated_result(shape=(4,)), "p.png")
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        figures.iterated_perturbation(iterated_result(), "p.png", most=0)
    for wrong in ((1, 1), (1, 0), (0, 1, 2), (0, np.nan)):
        with pytest.raises(ValueError, match=r"value_range must be \(minimum, maximum\)"):
            figures.iterated_perturbation(iterated_result(), "p.png", value_range=wrong)
    with pytest.raises(ValueError, match="name every class, got 2 names and class 2"):
        figures.iterated_perturbation(iterated_result(), "p.png", class_names=["ash", "bay"])
    with pytest.raises(ValueError, match=r"must end in \.png or in nothing, got 'it3\.jpg'"):
        figures.iterated_perturbation(iterated_result(), tmp_path / "it3.jpg")
    assert not list(tmp_path.iterdir())
