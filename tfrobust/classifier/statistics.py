"""Moving statistics of layers that are called in training mode without being trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import keras
import tensorflow as tf

__all__ = ["unchanged_statistics"]


@contextlib.contextmanager
def unchanged_statistics(models: Sequence[keras.Model]) -> Iterator[None]:
    """In a graph: calls in the block leave the models' moving statistics as they were.

    Restored are floating-point variables that are not trained: moving averages, and vectors of
    power iterations. Seeds of dropout go on.
    """
    variables = {
        id(variable): variable
        for model in models
        for variable in model.non_trainable_variables
        if "float" in str(variable.dtype)
    }
    before = [(variable, tf.identity(variable.value)) for variable in variables.values()]
    yield
    for variable, value in before:
        variable.assign(value)
