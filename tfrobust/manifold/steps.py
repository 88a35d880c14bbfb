"""The compiled step of a VAE-GAN: updates of encoder, decoder and discriminator in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

from tfrobust.classifier import unchanged_statistics
from tfrobust.manifold.vae_gan import VaeGan

__all__ = ["LOSSES", "compile_step", "decoder_loss", "discriminator_loss", "encoder_loss", "latent"]

LOSSES = ("reconstruction", "kl", "decoder", "discriminator")


def latent(vae: VaeGan, x: tf.Tensor, *, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
    """Means and logarithms of the variances of q(z | x), (batch, latent_size) each."""
    moments = tf.cast(vae.encoder(x, training=training), x.dtype)
    return moments[:, : vae.latent_size], moments[:, vae.latent_size :]


def encoder_loss(
    vae: VaeGan, x: tf.Tensor, noise: tf.Tensor
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """mean_i (||x_i - dec(z_i)||_1 + KL(q(z | x_i), N(0, I))), and its two parts.

    Args:
        vae: in training mode.
        x: (batch, *image_shape).
        noise: (batch, latent_size) standard normal; z = mean + noise * standard deviation.
    """
    mean, log_variance = latent(vae, x, training=True)
    z = mean + tf.exp(log_variance / 2) * noise
    distance = _l1(x - vae.decoder(z, training=True))
    # KL of normal distributions: (mu^2 + sigma^2 - log sigma^2 - 1) / 2 per dimension
    divergence = tf.square(mean) + tf.exp(log_variance) - log_variance - 1
    divergence = tf.reduce_sum(divergence, axis=1) / 2
    parts = {"reconstruction": tf.reduce_mean(distance), "kl": tf.reduce_mean(divergence)}
    return parts["reconstruction"] + parts["kl"], parts


def decoder_loss(
    vae: VaeGan, x: tf.Tensor, noise: tf.Tensor, prior: tf.Tensor, weight: float
) -> tf.Tensor:
    """mean_i (weight * ||x_i - r_i||_1 - log D(r_i) - log D(dec(prior_i))), r = dec(z).

    Args:
        vae: in training mode.
        x: (batch, *image_shape).
        noise: (batch, latent_size) standard normal, of z.
        prior: (batch, latent_size) standard normal.
        weight: of the reconstruction.
    """
    reconstruction, sample = _generated(vae, x, noise, prior)
    # D = sigmoid(d), -log sigmoid(d) = softplus(-d)
    fooling = [
        tf.nn.softplus(-vae.discriminator(image, training=True)[:, 0])
        for image in (reconstruction, sample)
    ]
    return tf.reduce_mean(weight * _l1(x - reconstruction) + tf.add_n(fooling))


def discriminator_loss(vae: VaeGan, x: tf.Tensor, noise: tf.Tensor, prior: tf.Tensor) -> tf.Tensor:
    """-mean_i (log D(x_i) + log(1 - D(r_i)) + log(1 - D(dec(prior_i)))); see `decoder_loss`."""
    fakes = [tf.stop_gradient(image) for image in _generated(vae, x, noise, prior)]
    losses = [tf.nn.softplus(-vae.discriminator(x, training=True)[:, 0])]
    losses += [tf.nn.softplus(vae.discriminator(image, training=True)[:, 0]) for image in fakes]
    return tf.reduce_mean(tf.add_n(losses))


def compile_step(
    vae: VaeGan,
    optimizers: Mapping[str, keras.optimizers.Optimizer],
    *,
    weight: float,
    discriminator_steps: int,
    seed: int,
) -> Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]:
    """A graph function of a batch and the number of the step: all updates, and `LOSSES`.

    The encoder is updated first, then the decoder, then the discriminator `discriminator_steps`
    times, each with the others' new weights and random numbers of its own. All networks are in
    training mode; the moving statistics of a network change in its own update only.

    Source: Kim 2019, appendix A.3, and its released code.
    """
    count = 2 + discriminator_steps

    def step(x: tf.Tensor, number: tf.Tensor) -> dict[str, tf.Tensor]:
        draws = tf.random.stateless_normal(
            [count, 2, tf.shape(x)[0], vae.latent_size], tf.stack([seed, number]), dtype=x.dtype
        )
        _, parts = update(vae, "encoder", optimizers, lambda: encoder_loss(vae, x, draws[0, 0]))
        losses = dict(parts)
        losses["decoder"], _ = update(
            vae, "decoder", optimizers, lambda: (decoder_loss(vae, x, *_pair(draws, 1), weight), {})
        )
        for k in range(2, count):
            losses["discriminator"], _ = update(
                vae,
                "discriminator",
                optimizers,
                lambda k=k: (discriminator_loss(vae, x, *_pair(draws, k)), {}),
            )
        return losses

    strategy = tf.distribute.get_strategy()  # optimizers need the context of a replica
    return tf.function(lambda x, number: strategy.run(step, args=(x, number)), autograph=False)


def update(
    vae: VaeGan,
    name: str,
    optimizers: Mapping[str, keras.optimizers.Optimizer],
    loss_of: Callable[[], tuple[tf.Tensor, dict[str, tf.Tensor]]],
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """One step of one network's optimizer; its loss, and the parts of it."""
    variables = vae.networks[name].trainable_variables
    others = [network for other, network in vae.networks.items() if other != name]
    with unchanged_statistics(others), tf.GradientTape() as tape:
        loss, parts = loss_of()
    gradients = tape.gradient(loss, variables)
    optimizers[name].apply_gradients(zip(gradients, variables, strict=True))
    return loss, parts


def _generated(
    vae: VaeGan, x: tf.Tensor, noise: tf.Tensor, prior: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Reconstructions of x, and samples from the prior."""
    mean, log_variance = latent(vae, x, training=True)
    z = mean + tf.exp(log_variance / 2) * noise
    return vae.decoder(z, training=True), vae.decoder(prior, training=True)


def _pair(draws: tf.Tensor, k: int) -> Sequence[tf.Tensor]:
    return draws[k, 0], draws[k, 1]


def _l1(difference: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.abs(difference), axis=[1, 2, 3])
