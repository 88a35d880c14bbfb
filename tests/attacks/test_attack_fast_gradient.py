"""The fast gradient sign attack against its closed form."""

import numpy as np
import pytest

from tfrobust.attacks import minimal


def test_linear_closed_form(linear):
    model, x, normal, margin = linear
    exact = margin / np.abs(normal).sum()
    result = minimal(model, x, "fast_gradient_sign", norm=np.inf)
    assert result.success.all()
    assert (result.distance >= exact * (1 - 1e-4)).all()
    np.testing.assert_allclose(result.distance, exact, rtol=1e-3, atol=1e-6)
    towards = np.where(result.labels == 0, 1, -1)[:, None] * np.sign(normal)
    np.testing.assert_array_equal(np.sign(result.perturbation).reshape(16, 36), towards)


def test_scales_with_the_value_range(linear):
    model, x, normal, margin = linear
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel / 255, bias])
    result = minimal(
        model, x * 255, "fast_gradient_sign", value_range=(0, 255), norm=np.inf, steps=30
    )
    np.testing.assert_allclose(result.distance, 255 * margin / np.abs(normal).sum(), rtol=1e-3)


def test_beyond_max_epsilon_is_unsuccessful(linear):
    model, x, normal, margin = linear
    exact = margin / np.abs(normal).sum()
    limit = float(np.median(exact))
    result = minimal(model, x, "fast_gradient_sign", max_epsilon=limit)
    np.testing.assert_array_equal(result.success, exact < limit)


def test_steps_are_bisections(linear):
    model, x, *_ = linear
    result = minimal(model, x, "fast_gradient_sign", max_epsilon=0.25, steps=3, norm=np.inf)
    grid = result.distance / (0.25 / 2**3)
    np.testing.assert_allclose(grid, np.round(grid), atol=1e-3)
    assert len(np.unique(np.round(grid))) > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_epsilon": 0}, "max_epsilon must be positive and finite, got 0"),
        ({"steps": 1.5}, "steps must be a whole number of at least 0, got 1.5"),
    ],
)
def test_bad_settings(linear, settings, message):
    with pytest.raises(ValueError, match=message):
        minimal(linear[0], linear[1], "fast_gradient_sign", **settings)
