"""Saliency maps against finite differences in float64 and the Jacobian."""

import numpy as np
import pytest
from helpers.derivatives import (
    CLASSES,
    away_from_kinks,
    finite_differences,
    images,
    network,
    numpy_network,
)

import tfrobust
from tfrobust import saliency
from tfrobust.classifier import jacobian, predict_logits
from tfrobust.saliency import gradient


def test_the_top_of_the_library_offers_the_same_function():
    assert tfrobust.input_gradient is saliency.input_gradient is gradient


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_input_gradients_are_those_of_finite_differences(activation):
    model = network(activation, "max")
    forward = numpy_network(model, activation, "max")
    x = away_from_kinks(forward)
    labels = np.array([2, 0, 3])

    def cross_entropy(label):
        def loss(z):
            logits = forward(z)[0]
            return np.log(np.exp(logits).sum()) - logits[label : label + 1]

        return loss

    pairs = list(zip(x, labels, strict=True))
    logit = [finite_differences(lambda z: forward(z)[0][k : k + 1], row)[0] for row, k in pairs]
    loss = [finite_differences(cross_entropy(k), row)[0] for row, k in pairs]
    assert np.abs(np.stack(loss) - np.stack(logit)).max() > 1e-2
    close = {"atol": 2e-5, "rtol": 1e-3}
    np.testing.assert_allclose(gradient(model, x, labels), logit, **close)
    np.testing.assert_allclose(gradient(model, x, labels, of="logit"), logit, **close)
    np.testing.assert_allclose(gradient(model, x, labels, of="loss"), loss, **close)


def test_without_labels_the_predicted_classes_are_meant():
    model = network("tanh", "max")
    x = images(40)
    predicted = predict_logits(model, x).argmax(axis=1)
    assert len(set(predicted)) > 1
    for of in ("logit", "loss"):
        found = gradient(model, x, of=of)
        np.testing.assert_array_equal(found, gradient(model, x, predicted, of=of))
        other = gradient(model, x, (predicted + 1) % CLASSES, of=of)
        assert np.abs(found - other).max() > 1e-2


def test_input_gradient_of_a_logit_is_a_row_of_the_jacobian():
    model = network("relu", "average")
    x = images(5)
    labels = np.array([0, 3, 1, 1, 2])
    rows = jacobian(model, x)[np.arange(5), labels]
    np.testing.assert_allclose(gradient(model, x, labels), rows, atol=1e-6)


def test_bad_classes_and_targets_are_refused():
    model = network("tanh", "max")
    x = images()
    with pytest.raises(ValueError, match=r"classes must lie in 0\.\.3 for 4 classes"):
        gradient(model, x, [0, 4, 1])
    with pytest.raises(ValueError, match="Give class indices, not one-hot rows"):
        gradient(model, x, np.eye(3, 4))
    with pytest.raises(ValueError, match='"loss" or "log_odds", got \'probability\''):
        gradient(model, x, of="probability")
