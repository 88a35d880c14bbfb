"""SmoothGrad and VarGrad: mean and variance of gradients at noisy inputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tfrobust.arguments import as_count, as_not_negative
from tfrobust.classifier import Classifier, gradients_at, in_batches
from tfrobust.errors import InputError
from tfrobust.saliency.explained import Explained, as_explained, cotangent

__all__ = ["Smoothing", "normal_noise", "smoothed_maps", "smoothgrad", "vargrad"]

# numbers per counter of the Philox generator, and TensorFlow's code for it
_BLOCK = 4
_PHILOX = 1


def smoothgrad(
    model: keras.Model,
    x: Any,
    classes: Any = None,
    *,
    sigma: float = 0.15,
    samples: int = 50,
    clip: tuple[float, float] | None = None,
    include_clean: bool = False,
    of: Explained = "logit",
    seed: int = 0,
    batch_size: int = 100,
) -> np.ndarray:
    """SmoothGrad: the signed mean of the gradients at x + e_1, ..., x + e_N, e_i ~ N(0, sigma^2 I).

    The memory does not depend on the number of samples. The noise of an example depends on the
    seed, its row in x and the number of the sample only, not on the batch size.

    Source: Noack et al. 2020, eq. (10); Smilkov et al., SmoothGrad, 2017. The released code of
    Noack 2020 has clip=(0, 1) and include_clean=True: the mean of 51 maps.

    Args:
        model: any classifier.
        x: (batch, *input).
        classes: (batch,), the class that each example is explained for; the predicted classes of
            x, without noise, where None.
        sigma: standard deviation of the noise, in the units of the input; at least 0.
        samples: N, at least 1.
        clip: (minimum, maximum) to which the noisy inputs are clipped, in the units of the input;
            None for no clipping.
        include_clean: the gradient at x itself, which is not clipped, is one more of the maps.
        of: as in `gradient`.
        seed: of the noise, at least 0.
        batch_size: examples per call.

    Returns:
        (batch, *input) float32.

    Raises:
        ValueError: x or classes are malformed, `of` is unknown, or a setting is out of range.
        NotLogitsError: the model has no logits to give.
    """
    smoothing = Smoothing(sigma, samples, clip, include_clean, of)
    return smoothed_maps(model, x, classes, smoothing, seed=seed, batch_size=batch_size)


def vargrad(
    model: keras.Model,
    x: Any,
    classes: Any = None,
    *,
    sigma: float = 0.15,
    samples: int = 50,
    clip: tuple[float, float] | None = None,
    of: Explained = "logit",
    seed: int = 0,
    batch_size: int = 100,
) -> np.ndarray:
    """VarGrad: the variance of the gradients at x + e_1, ..., x + e_N, e_i ~ N(0, sigma^2 I).

    The population variance (divided by N) of each entry, by Welford's update: not negative, and
    exactly 0 for linear models. The noise is that of `smoothgrad` with the same seed.

    Source: Adebayo et al., Local Explanation Methods for Deep Neural Networks Lack Sensitivity to
    Parameter Values, 2018.

    Args:
        model: any classifier.
        x: (batch, *input).
        classes: as in `smoothgrad`.
        sigma: as in `smoothgrad`.
        samples: N, at least 1.
        clip: as in `smoothgrad`.
        of: as in `gradient`.
        seed: of the noise, at least 0.
        batch_size: examples per call.

    Returns:
        (batch, *input) float32, at least 0.

    Raises:
        ValueError: x or classes are malformed, `of` is unknown, or a setting is out of range.
        NotLogitsError: the model has no logits to give.
    """
    smoothing = Smoothing(sigma, samples, clip, False, of)
    return smoothed_maps(
        model, x, classes, smoothing, seed=seed, batch_size=batch_size, statistic="variance"
    )


@dataclasses.dataclass(frozen=True)
class Smoothing:
    """Validated settings of `smoothgrad`, with its defaults.

    Raises:
        InputError: a setting out of range; `of` is left to `as_explained`.
    """

    sigma: float = 0.15
    samples: int = 50
    clip: tuple[float, float] | None = None
    include_clean: bool = False
    of: Explained = "logit"

    def __post_init__(self):
        values = {
            "sigma": as_not_negative("sigma", self.sigma),
            "samples": as_count("samples", self.samples, 1),
            "clip": _as_clip(self.clip),
            "include_clean": bool(self.include_clean),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)


def smoothed_maps(
    model: keras.Model,
    x: Any,
    classes: Any,
    smoothing: Smoothing,
    *,
    seed: int,
    batch_size: int,
    statistic: Literal["mean", "variance"] = "mean",
    first_row: int = 0,
    description: str | None = None,
) -> np.ndarray:
    """`smoothgrad` or `vargrad` of the rows of a data set from `first_row` on.

    A row's noise is that of its place in the data set.

    Args:
        model: any classifier.
        x: (batch, *input).
        classes: (batch,) or None.
        smoothing: the settings.
        seed: of the noise.
        batch_size: examples per call.
        statistic: of the gradients.
        first_row: place of x[0] in the data set.
        description: label of the progress bar.
    """
    key = _key(seed)
    x, classes = as_explained(model, x, classes, smoothing.of, batch_size)
    rows = np.arange(first_row, first_row + len(x), dtype=np.int64)
    low, high = smoothing.clip or (-math.inf, math.inf)
    scalars = [tf.constant(value, tf.float32) for value in (smoothing.sigma, low, high)]
    count = tf.constant(smoothing.samples)
    options = smoothing.of, statistic == "variance", smoothing.include_clean
    smoothed = Classifier.of(model, x).compiled(_smoothed, *options)

    def run(*batch: tf.Tensor) -> tf.Tensor:
        return smoothed(*batch, key, count, *scalars)

    if description is None:
        description = f"{statistic} of {smoothing.samples} gradients of {smoothing.of}"
    return in_batches(run, x, rows, classes, batch_size=batch_size, description=description)


def normal_noise(
    key: tf.Tensor, first_row: tf.Tensor, sample: tf.Tensor, like: tf.Tensor
) -> tf.Tensor:
    """In a graph: standard normal numbers for consecutive rows, float32 of the shape of `like`.

    A row's numbers are a stretch of the Philox stream of (key, sample), with the place that belongs
    to the row: one operation draws a whole batch, and batches of any size get the same numbers.

    Args:
        key: uint64.
        first_row: int64, place of the first row in the data set.
        sample: int32, number of the sample.
        like: (batch, *input).
    """
    size = math.prod(like.shape[1:])
    blocks = -(-size // _BLOCK)
    counter = tf.stack([first_row * blocks, tf.cast(sample, tf.int64)])
    numbers = tf.raw_ops.StatelessRandomNormalV2(
        shape=[tf.shape(like)[0], blocks * _BLOCK],
        key=key[None],
        counter=tf.cast(counter, tf.uint64),
        alg=_PHILOX,
        dtype=tf.float32,
    )
    return tf.reshape(numbers[:, :size], tf.shape(like))


def _smoothed(
    logits: keras.Model, of: Explained, variance: bool, include_clean: bool
) -> Callable[..., tf.Tensor]:
    """Build: the map of a batch of consecutive rows; one compiled loop for all settings."""

    def run(
        x: tf.Tensor,
        rows: tf.Tensor,
        classes: tf.Tensor,
        key: tf.Tensor,
        samples: tf.Tensor,
        sigma: tf.Tensor,
        low: tf.Tensor,
        high: tf.Tensor,
    ) -> tf.Tensor:
        def gradient(inputs: tf.Tensor) -> tf.Tensor:
            values, pull_back = gradients_at(logits, inputs)
            return pull_back(cotangent(of, values, classes))

        def add(sample: tf.Tensor, mean: tf.Tensor, *squares: tf.Tensor) -> tuple[tf.Tensor, ...]:
            noise = normal_noise(key, rows[0], sample, x)
            found = gradient(tf.clip_by_value(x + sigma * noise, low, high))
            # a running mean, unlike a sum, is exact where all gradients are equal
            count = tf.cast(sample + 1 + include_clean, x.dtype)
            difference = found - mean
            mean += difference / count
            squares = [total + difference * (found - mean) for total in squares]
            return sample + 1, mean, *squares

        mean = gradient(x) if include_clean else tf.zeros_like(x)
        squares = [tf.zeros_like(x)] if variance else []
        state = tf.while_loop(
            lambda sample, *_: sample < samples,
            add,
            (tf.constant(0), mean, *squares),
            parallel_iterations=1,  # the memory of one gradient
        )
        return state[-1] / tf.cast(samples, x.dtype) if variance else state[1]

    return run


def _key(seed: Any) -> tf.Tensor:
    """The generator's key, uint64, of a seed of any size."""
    sequence = np.random.SeedSequence(as_count("seed", seed, 0))
    return tf.constant(sequence.generate_state(1, np.uint64)[0], tf.uint64)


def _as_clip(clip: Any) -> tuple[float, float] | None:
    if clip is None:
        return None
    try:
        values = np.asarray(clip)
        # float32, like the images
        values = values.astype(np.float32) if values.dtype.kind in "fiu" else np.empty(0)
    except ValueError:  # ragged
        values = np.empty(0)
    if not (values.shape == (2,) and np.isfinite(values).all() and values[0] < values[1]):
        raise InputError(f"clip must be (minimum, maximum) or None, got {clip!r}")
    return float(values[0]), float(values[1])
