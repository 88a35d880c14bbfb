"""Loss and accuracy of a classifier on a data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.classifier import Classifier
from tfrobust.data import Data, as_stream
from tfrobust.distribution import gather_rows, worker_count, worker_index

__all__ = ["evaluate"]


def evaluate(
    model: keras.Model, x: Any | Data, labels: Any = None, *, batch_size: int = 100
) -> dict[str, float]:
    """Mean cross-entropy and accuracy of a classifier: `loss`, `accuracy`.

    Runs on all devices and workers of the `tf.distribute` strategy in scope.

    Args:
        model: any Keras classifier.
        x: images (count, *input), or images and labels as `fit` takes them: a dict of named
            tensors or a `Stream`.
        labels: (count,); None where x includes them.
        batch_size: examples per call.

    Raises:
        ValueError: malformed inputs or labels.
    """
    data = as_stream(model, x if labels is None else (x, labels), "x")

    shape = np.zeros((1, *data.input_shape))
    run = Classifier.of(model, shape, check=False).compiled(_losses_and_hits)
    sums = np.zeros(3)
    with data.errors():
        for batch in data.evaluation_batches(
            batch_size, workers=worker_count(), worker=worker_index()
        ):
            losses, correct = run(batch["images"], batch["labels"])
            sums += [np.sum(losses, dtype=np.float64), np.sum(correct), len(losses)]
    loss, hits, count = gather_rows(sums[None]).sum(axis=0)
    return {"loss": float(loss / count), "accuracy": float(hits / count)}


def _losses_and_hits(logits: keras.Model) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """Build: each example's cross-entropy, and whether it is classified correctly."""

    def run(rows: tf.Tensor, classes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        values = tf.cast(logits(rows, training=False), tf.float32)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, values)
        return losses, tf.argmax(values, axis=1, output_type=tf.int32) == classes

    return run
