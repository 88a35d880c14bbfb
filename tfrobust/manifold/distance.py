"""The distance of images from the manifold that a VAE-GAN has learned (Kim 2019, section 2.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import tensorflow as tf

from tfrobust.arguments import as_count, as_positive
from tfrobust.classifier import in_batches
from tfrobust.errors import InputError
from tfrobust.manifold.steps import latent
from tfrobust.manifold.vae_gan import VaeGan
from tfrobust.norms import norm, per_example

__all__ = ["ManifoldDistance", "distance"]

Projection = Literal["mean", "sample", "search"]


@dataclasses.dataclass(frozen=True)
class ManifoldDistance:
    """Images projected to the manifold.

    Attributes:
        distance: (batch,) float32, l2 norm of x - projection.
        projection: (batch, *image_shape) float32, decoded from `latent`.
        latent: (batch, latent_size) float32.
    """

    distance: np.ndarray
    projection: np.ndarray
    latent: np.ndarray


def distance(
    vae: VaeGan,
    x: Any,
    *,
    by: Projection = "mean",
    starts: int = 3,
    steps: int = 200,
    step_size: float = 0.1,
    seed: int = 0,
    batch_size: int = 100,
) -> ManifoldDistance:
    """d(x) = ||x - dec(z)||_2 for a latent vector z of each image.

    Args:
        vae: trained.
        x: (batch, *image_shape), in the VAE-GAN's value range.
        by: z is the "mean" of the encoder's distribution; one "sample" of that distribution, as in
            the released code of Kim 2019, whose distances are therefore random; or the nearest that
            a "search" finds: argmin_z ||x - dec(z)||_2 (footnote 2), an upper bound of the minimum.
        starts: of the search: the encoder's mean, and draws from the encoder's distribution.
        steps: of the search, gradient steps per start (Adam, the rate falling to 0 linearly).
        step_size: of the search.
        seed: of draws, which do not depend on the batch size.
        batch_size: images per call; bounds the memory.

    Raises:
        InputError: images of another size or outside the range, or a setting out of range.
    """
    if by not in get_args(Projection):
        known = ", ".join(map(repr, get_args(Projection)))
        raise InputError(f"by must be one of {known}, got {by!r}")
    starts, steps = as_count("starts", starts, 1), as_count("steps", steps, 1)
    step_size = as_positive("step_size", step_size)
    x = vae.checked(x)
    first = int(np.random.SeedSequence([seed]).generate_state(1)[0].view(np.int32))
    seeds = np.stack([np.full(len(x), first), np.arange(len(x))], 1).astype(np.int32)
    if by == "search":
        run = vae.compiled(_search, starts, steps, step_size)
    else:
        run = vae.compiled(_encoded, by == "sample")
    found = in_batches(run, x, seeds, batch_size=batch_size, description="distance to manifold")
    return ManifoldDistance(*found)


def _encoded(vae: VaeGan, sampled: bool) -> Callable[..., Any]:
    """Build: decode the mean, or one draw, of the encoder's distribution."""

    def run(x: tf.Tensor, seeds: tf.Tensor) -> tuple[tf.Tensor, ...]:
        mean, log_variance = latent(vae, x)
        z = mean
        if sampled:
            z = mean + tf.exp(log_variance / 2) * _normal(seeds, 0, vae.latent_size)
        image = vae.decoder(z, training=False)
        return norm(x - image), image, z

    return run


def _search(vae: VaeGan, starts: int, steps: int, step_size: float) -> Callable[..., Any]:
    """Build: the nearest decoded image from several starts."""

    def run(x: tf.Tensor, seeds: tf.Tensor) -> tuple[tf.Tensor, ...]:
        mean, log_variance = latent(vae, x)
        best = tf.fill(tf.shape(x)[:1], x.dtype.max), x, mean
        for start in range(starts):
            z = mean
            if start:
                z = mean + tf.exp(log_variance / 2) * _normal(seeds, start, vae.latent_size)
            best = _descend(vae, x, z, best, steps, step_size)
        return best

    return run


def _descend(
    vae: VaeGan,
    x: tf.Tensor,
    z: tf.Tensor,
    best: tuple[tf.Tensor, ...],
    steps: int,
    step_size: float,
) -> tuple[tf.Tensor, ...]:
    """Adam on ||x - dec(z)||_2^2 from z; the nearest of `best` and all iterates."""

    def nearest(z: tf.Tensor, image: tf.Tensor, best: Any) -> tuple[tf.Tensor, ...]:
        length = norm(x - image)
        closer = length < best[0]
        pairs = zip((length, image, z), best, strict=True)
        return tuple(tf.where(per_example(closer, new), new, old) for new, old in pairs)

    def step(k: tf.Tensor, z: tf.Tensor, first: tf.Tensor, second: tf.Tensor, *best: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(z)
            image = vae.decoder(z, training=False)
            squares = tf.reduce_sum(tf.square(x - image))
        gradient = tape.gradient(squares, z)
        best = nearest(z, image, best)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * tf.square(gradient)
        count = tf.cast(k + 1, x.dtype)
        rate = step_size * (1 - tf.cast(k, x.dtype) / steps)
        corrected = first / (1 - tf.pow(0.9, count)), second / (1 - tf.pow(0.999, count))
        z -= rate * corrected[0] / (tf.sqrt(corrected[1]) + 1e-8)
        return k + 1, z, first, second, *best

    zeros = tf.zeros_like(z)
    state = (tf.constant(0), z, zeros, zeros, *best)
    _, z, _, _, *best = tf.while_loop(
        lambda k, *_: k < steps, step, state, maximum_iterations=steps
    )
    return nearest(z, vae.decoder(z, training=False), best)


def _normal(seeds: tf.Tensor, offset: int, size: int) -> tf.Tensor:
    """Standard normal numbers of each image's own seed, (batch, size)."""

    def of_one(seed: tf.Tensor) -> tf.Tensor:
        return tf.random.stateless_normal([size], tf.stack([seed[0] + offset, seed[1]]))

    return tf.map_fn(of_one, seeds, fn_output_signature=tf.TensorSpec([size], tf.float32))
