"""Pictures of what a VAE-GAN has learned: reconstructions and samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

from tfrobust.manifold.vae_gan import VaeGan
from tfrobust.report import figures

__all__ = ["save_pictures"]


def save_pictures(
    vae: VaeGan, images: np.ndarray, folder: Path, epoch: int, *, seed: int = 0
) -> Path:
    """Images, their reconstructions and as many samples, `pictures-<epoch>.png`; its path.

    Args:
        vae: the VAE-GAN, in inference mode.
        images: (count, *image_shape).
        folder: exists.
        epoch: for the file's name.
        seed: of the samples' latent vectors, the same in every epoch.
    """
    mean = vae.encoder(images, training=False)[:, : vae.latent_size]
    prior = tf.random.stateless_normal([len(images), vae.latent_size], [seed, 0])
    rows = [images, vae.decoder(mean, training=False), vae.decoder(prior, training=False)]
    low, high = vae.value_range
    pictures = [np.clip((np.asarray(row) - low) / (high - low), 0, 1) for row in rows]
    names = "image", "reconstruction", "prior sample"
    figure = figures.image_grid(list(zip(names, pictures, strict=True)))
    return figures.save(figure, folder, f"pictures-{epoch:04d}")
