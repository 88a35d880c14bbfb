"""Rules that users register for layer types."""

import keras
import numpy as np
import pytest
from helpers.nets import classifier, disc, nothing_inside, randomise

import tfrobust
from tfrobust.bounds import operator_norm_upper_bound, register_rule, registry, robustness

layers = keras.layers


@pytest.mark.parametrize("activation", [None, "tanh", "relu"])
def test_a_registered_rule_is_for_the_network_as_it_is(activation):
    """Nothing is applied twice, or in training mode."""

    class Doubled(layers.Dense):
        def call(self, inputs, training=True):
            return super().call(inputs) * (1000.0 if training else 2.0)

    model, _ = classifier((2,), Doubled(5, activation=activation))
    randomise(model, 0)
    x = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
    register_rule(Doubled)(lambda layer, shape: 2 * operator_norm_upper_bound(_plain(layer), shape))
    result = robustness(model, x)
    logits = np.sort(tfrobust.predict_logits(model, x), axis=1)
    np.testing.assert_allclose(result.margin, logits[:, -1] - logits[:, -2], rtol=1e-5)
    assert nothing_inside(model, x, result.bound, disc(400, np.random.default_rng(0)))
    assert (result.bound > 0).all()
    # nobody has bounded the rounding errors of a user's layer
    assert not result.proved_in_float32.any() and (result.rounding > 0).all()


def _plain(layer):
    plain = layers.Dense(layer.units)
    plain.build((None, layer.kernel.shape[0]))
    plain.kernel.assign(layer.kernel)
    return plain


def test_a_registered_rule_and_a_softmax_in_the_last_layer():
    class TripledInput(layers.Dense):
        def call(self, inputs, training=None):
            return super().call(3 * inputs) if self.units else inputs

    inputs = keras.Input((2,))
    model = keras.Model(inputs, TripledInput(3, activation="softmax")(layers.Dense(4)(inputs)))
    randomise(model, 0)
    register_rule(TripledInput)(
        lambda layer, shape: 3 * operator_norm_upper_bound(_plain(layer), shape)
    )
    x = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
    logits = np.sort(tfrobust.predict_logits(model, x), axis=1)
    result = robustness(model, x)
    np.testing.assert_allclose(result.margin, logits[:, -1] - logits[:, -2], rtol=1e-5)
    assert nothing_inside(model, x, result.bound, disc(400, np.random.default_rng(0)))


@pytest.mark.filterwarnings("ignore:the thesis's printed rules")
def test_a_rule_of_ones_own_replaces_the_thesis(monkeypatch):
    monkeypatch.setitem(registry._RULES, "thesis", dict(registry._RULES["thesis"]))
    model, x = classifier((4,), layers.Dense(6, activation="tanh"), layers.Dropout(0.5))
    before = robustness(model, x, rules="thesis")
    seen = []

    @register_rule(layers.Dropout, rules="thesis")
    def dropout(layer, input_shape, kappa):
        seen.append((layer.name, input_shape))
        return kappa / 2

    halved = robustness(model, x, rules="thesis")
    assert seen == [(model.layers[1].name, (6,))]
    assert "registered" in halved.layers[2].rule and "registered" not in before.layers[2].rule
    np.testing.assert_allclose(halved.layers[2].kappa, halved.layers[3].kappa / 2)

    @register_rule(layers.Dense, rules="thesis")
    def dense(layer, input_shape, kappa):
        return kappa / operator_norm_upper_bound(layer, input_shape)

    result = robustness(model, x, rules="thesis")
    assert [kappa.rule for kappa in result.layers].count("registered for Dense") == 2
    first, last = model.layers[0], model.layers[-1]
    norms = [operator_norm_upper_bound(layer, layer.kernel.shape[:1]) for layer in (first, last)]
    ordered = np.sort(tfrobust.predict_logits(model, x), axis=1)
    gap = (ordered[:, -1] - ordered[:, -2]) / np.sqrt(2)
    np.testing.assert_allclose(result.bound, gap / norms[0] / norms[1] / 2, rtol=1e-5)

    for result_of in (
        lambda kappa: None,
        lambda kappa: np.ones(3),
        lambda kappa: kappa * np.nan,
        lambda kappa: -kappa,
        lambda kappa: "many",
    ):
        register_rule(layers.Dense, rules="thesis")(
            lambda layer, shape, kappa, result_of=result_of: result_of(kappa)
        )
        with pytest.raises(ValueError, match=rf"thesis rule of layer '{last.name}'.*\(10,\)"):
            robustness(model, x, rules="thesis")


@pytest.mark.parametrize("invalid", [None, "two", np.ones(3), -1.0, float("nan"), float("inf")])
def test_a_certified_rule_must_give_a_number(invalid):
    class Mine(layers.Layer):
        def call(self, x):
            return x

    register_rule(Mine)(lambda layer, shape: invalid)
    model, x = classifier((4,), Mine(name="mine"))
    with pytest.raises(ValueError, match=r"'mine' \(Mine\) returned .*finite and not negative"):
        robustness(model, x)
