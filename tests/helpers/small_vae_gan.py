"""A VAE-GAN of 8x8 images, and a training run that can be ended early."""

import os

import keras
import numpy as np
from keras import layers

from tfrobust.manifold import VaeGan, train
from tfrobust.training import checkpoints

SETTINGS = {"reconstruction_weight": 0.01, "batch_size": 10, "seed": 3, "progress": False}


def small_vae_gan(seed=0, latent_size=3, channels=1):
    """Untrained, with batch normalisation in every network."""
    keras.utils.set_random_seed(seed)
    encoder = keras.Sequential(
        [
            keras.Input((8, 8, channels)),
            layers.Conv2D(4, 3, strides=2, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(2 * latent_size),
        ]
    )
    decoder = keras.Sequential(
        [
            keras.Input((latent_size,)),
            layers.Dense(4 * 4 * 4),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Reshape((4, 4, 4)),
            layers.Conv2DTranspose(channels, 4, strides=2, padding="same", activation="tanh"),
        ]
    )
    discriminator = keras.Sequential(
        [
            keras.Input((8, 8, channels)),
            layers.Conv2D(4, 3, strides=2, padding="same"),
            layers.BatchNormalization(),
            layers.LeakyReLU(0.1),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    return VaeGan(encoder, decoder, discriminator)


def small_images(count=40, seed=0):
    """Bright discs at random places, in [-1, 1]: (count, 8, 8, 1)."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(2, 6, (count, 2, 1, 1))
    y, x = np.mgrid[:8, :8]
    distance = np.hypot(y - centre[:, 0], x - centre[:, 1])
    return np.tanh(2 - distance)[..., None].astype(np.float32)


def variables(vae):
    return {name: [v.numpy() for v in net.variables] for name, net in vae.networks.items()}


def run(folder, epochs, killed_at=0):
    """Train in `folder` with checkpoints; end the process after `killed_at` checkpoints."""
    if killed_at:
        saved, save = [], checkpoints.save

        def save_and_end(*args):
            save(*args)
            saved.append(args)
            if len(saved) == killed_at:
                os._exit(9)

        checkpoints.save = save_and_end
    vae = small_vae_gan()
    train(vae, small_images(), epochs=epochs, folder=folder, checkpoint_every=3, **SETTINGS)
    flat = {f"{name}.{k}": v for name, vs in variables(vae).items() for k, v in enumerate(vs)}
    np.savez(f"{folder}/weights.npz", **flat)
