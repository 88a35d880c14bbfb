"""Theorems 5.3, 5.6 and 5.9 as coded against the printed forms, and worked examples."""

import math

import numpy as np
import pytest
from helpers.printed_formulas import normalization_of_one, responses_of_one
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrobust.bounds.printed import formulas

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=40)
@given(seed=seeds, channels=st.integers(1, 4), kappa=st.floats(1e-3, 1e2))
def test_theorem_5_6(seed, channels, kappa):
    rng = np.random.default_rng(seed)
    x = 3 * rng.normal(size=(2, 3, 3, channels))
    gamma, beta, mean = rng.normal(size=(3, channels))
    variance = rng.uniform(0.01, 4, channels)
    scale = gamma / np.sqrt(variance)
    y = scale * (x - mean) + beta
    expected = [normalization_of_one(kappa, row, gamma, beta, mean, variance) for row in x]
    found = formulas.batch_normalization(np.full(2, kappa), y, scale)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@settings(max_examples=40)
@given(
    seed=seeds,
    channels=st.integers(1, 7),
    radius=st.integers(0, 3),
    kappa=st.floats(1e-2, 10),
    alpha=st.sampled_from([1e-4, 0.1, 1.0]),
    beta=st.sampled_from([0.25, 0.75]),
    k=st.sampled_from([0.25, 2.0]),
)
def test_theorem_5_9(seed, channels, radius, kappa, alpha, beta, k):
    x = 2 * np.random.default_rng(seed).normal(size=(2, 2, 2, channels))
    settings_of = {"depth_radius": radius, "bias": k, "alpha": alpha, "beta": beta}
    expected = [responses_of_one(kappa, row, radius, k, alpha, beta) for row in x]
    found = formulas.response_normalization(np.full(2, kappa), x, **settings_of)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "window", "outputs", "expected"),
    [
        ("max", 2, 2, 0.5),
        ("average", 2, 2, 0.5),
        ("average", 8, 1, 1.0),
        (1.0, 2, 1, 0.25),
        (1.5, 2, 1, 0.3968502630),
        (2.0, 2, 1, 0.5),
        (4.0, 2, 1, 0.7071067812),
    ],
)
def test_pooling_by_hand(kind, window, outputs, expected):
    (found,) = formulas.pooling(np.ones(1), outputs, window, kind)
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("gamma", "y", "kappa", "expected"),
    [
        ((10.0, 0.01), (1.0, 1.0), 0.1, 7.0710678),
        ((1.0, 1.0), (1.0, 1.0), 0.1, 0.0707107),
        ((1.0, 1.0), (3.0, 4.0), 1.0, 0.8078866),
        ((1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 0.0, 0.0), 1.0, 0.5),
        ((10.0, 0.01), (0.0, 1.0), 0.1, 5.1189802),
        ((0.0, 1.0), (1.0, 1.0), 0.1, 0.0707107),  # as the text says of gamma = 0
    ],
)
def test_batch_normalization_by_hand(gamma, y, kappa, expected):
    (found,) = formulas.batch_normalization(np.array([kappa]), np.array([y]), np.array(gamma))
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("x", "k", "expected"),
    [((5.0, 0.0), 2.0, 3.6470663), ((1.0, 1.0), 2.0, 0.1189370), ((5.0, 0.0), 0.25, 3.5043941)],
)
def test_response_normalization_by_hand(x, k, expected):
    constants = {"depth_radius": 2, "bias": k, "alpha": 1e-4, "beta": 0.75}
    found = formulas.response_normalization(np.array([0.1]), np.array([x]), **constants)
    assert found[0] == pytest.approx(expected, rel=1e-6)


def test_both_normalisations_of_many_components():
    x = np.abs(np.random.default_rng(0).normal(size=(20, 12, 12))).transpose(1, 2, 0)[None]
    constants = {"depth_radius": 2, "bias": 2.0, "alpha": 1e-4, "beta": 0.75}
    (found,) = formulas.response_normalization(np.array([1e-3]), x, **constants)
    assert found == pytest.approx(0.9959824, rel=1e-6)
    y = np.random.default_rng(0).normal(size=(1, 12, 12, 20))
    (found,) = formulas.batch_normalization(np.array([1e-5]), y, np.ones(20))
    assert 1e-4 < found < 1e-3  # thirty times kappa


def test_where_no_class_can_be_reached():
    nowhere, x = np.array([np.inf, 1.0]), np.ones((2, 2))
    constants = {"depth_radius": 2, "bias": 2.0, "alpha": 1e-4, "beta": 0.75}
    for found in (
        formulas.batch_normalization(nowhere, x, np.ones(2)),
        formulas.response_normalization(nowhere, x, **constants),
        formulas.pooling(nowhere, 2, 2, "average"),
    ):
        assert found[0] == np.inf
        assert 0 < found[1] < np.inf
    none = np.zeros(2)
    np.testing.assert_array_equal(formulas.batch_normalization(none, x, np.ones(2)), 0)
    np.testing.assert_array_equal(formulas.response_normalization(none, x, **constants), 0)


def test_table_4_1_has_closed_forms():
    first, second = np.array(list(formulas.DERIVATIVES.values())).T
    by_name = dict(zip(formulas.DERIVATIVES, second, strict=True))
    np.testing.assert_array_equal(first, [1, 0.25, 1, 1, 1])
    assert by_name["sigmoid"] == pytest.approx(1 / (6 * math.sqrt(3)), rel=1e-12)
    assert by_name["tanh"] == pytest.approx(2 / (3 * math.sqrt(3)), rel=1e-12)
    assert by_name["softplus"] == 0.25
    # all but the one of tanh are what they say, and the sigmoid's no less
    z = np.linspace(-8, 8, 400_001)
    p = 1 / (1 + np.exp(-z))
    assert np.abs(p * (1 - p) * (1 - 2 * p)).max() == pytest.approx(by_name["sigmoid"], rel=1e-8)
    assert (p * (1 - p)).max() == pytest.approx(0.25)  # the second derivative of softplus
    t = np.tanh(z)
    assert np.abs(2 * t * (1 - t**2)).max() == pytest.approx(2 * by_name["tanh"], rel=1e-8)


@pytest.mark.filterwarnings("ignore:the thesis's printed rules")
def test_network_in_network_pays_24_times_less_than_the_windows_would_give():
    import reference_models
    from tfrobust.bounds import robustness

    model = reference_models.build("cifar_nin")
    x = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
    result = robustness(model, x, rules="thesis")
    pools = [layer for layer in model.layers if "Average" in type(layer).__name__]
    windows = [getattr(layer, "pool_size", (8, 8))[0] for layer in pools]
    assert math.prod(windows) == 24
    kappas = {layer.name: layer.kappa[0] for layer in result.layers}
    names = list(kappas)
    for layer in pools:
        place, size = names.index(layer.name), layer.output.shape[1]
        if layer.name == names[-1]:  # the global average
            behind, size = result.margin[0] / math.sqrt(2), 1
        else:
            behind = kappas[names[place + 1]]
        assert kappas[layer.name] == pytest.approx(behind / size, rel=1e-4)
