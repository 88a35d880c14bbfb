"""A small network in the place of one of Keras Applications, which takes long to trace."""

import contextlib

import keras
import pytest

from reference_models import applications

layers = keras.layers


def small_network(*, weights=None, input_shape=None, classes=1000, classifier_activation=None):
    """As `keras.applications.MobileNet` is called; convolutions with batch normalisation."""
    assert weights is None
    return keras.Sequential(
        [
            keras.Input(input_shape),
            *_block(8, strides=2),
            *_block(16, strides=2),
            layers.GlobalAveragePooling2D(),
            layers.Dense(classes, activation=classifier_activation),
        ]
    )


def _block(filters, strides):
    convolution = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)
    return [convolution, layers.BatchNormalization(), layers.ReLU(max_value=0.5)]


@contextlib.contextmanager
def small_mobilenet():
    """In the block "mobilenet" is the small network, with MobileNet's preprocessing."""
    original = applications.find("mobilenet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_network, "__module__", original.__module__)
        patch.setattr(small_network, "__name__", original.__name__)
        patch.setitem(applications.constructors(), "mobilenet", small_network)
        yield
