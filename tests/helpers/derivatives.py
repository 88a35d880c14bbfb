"""Derivatives by finite differences beside TensorFlow's own."""

import numpy as np
import tensorflow as tf

from tfrobust.classifier import exact_batch_statistics


def second_derivative(model, x, direction, exact):
    """Derivative along `direction` of the squared input gradient of a function of model(x)."""
    weights = tf.constant(np.random.default_rng(5).normal(size=(len(x), 3)))

    def squared_gradient(values):
        with tf.GradientTape() as tape:
            tape.watch(values)
            total = tf.reduce_sum(weights * tf.sin(model(values, training=True)))
        return tf.reduce_sum(tape.gradient(total, values) ** 2)

    def differentiate():
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = squared_gradient(x)
        return float(tf.reduce_sum(tape.gradient(value, x) * direction))

    step = 1e-6
    numeric = (squared_gradient(x + step * direction) - squared_gradient(x - step * direction)) / (
        2 * step
    )
    if exact:
        with exact_batch_statistics():
            return differentiate(), float(numeric)
    return differentiate(), float(numeric)
