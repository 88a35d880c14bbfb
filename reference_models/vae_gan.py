"""The VAE-GANs of Kim 2019, appendix A.3, as the paper and as its released code have them."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers

from reference_models.kim2019 import Variant, as_variant
from tfrobust.arguments import as_count
from tfrobust.errors import InputError
from tfrobust.manifold import VaeGan

__all__ = ["SpectralConv2D", "vae_gan_28", "vae_gan_32"]

_SLOPE = 0.1


@keras.saving.register_keras_serializable("tfrobust")
class SpectralConv2D(keras.layers.Conv2D):
    """A convolution whose kernel is divided by its operator norm where that exceeds 1.

        outputs = activation(inputs * kernel / max(sigma, 1) + bias)

    sigma estimates the l2 norm of the strided convolution itself, as a linear map of images of the
    input's size, not that of a reshaped kernel. One power iteration per call, with A the
    convolution, starts from the image u that the layer stores:

        v = A u / ||A u||,    u' = A^T v / ||A^T v||,    sigma = <A u', v> = ||A^T v||

    In training u' replaces u; otherwise sigma is computed alike and u stays. The estimate never
    exceeds the norm up to rounding, and reaches it in the course of training. As in the released
    code, u' and v are differentiated as functions of the kernel; only the stored u is constant. The
    released code replaces u in every evaluation of the layer, also outside training.

    sigma is computed in the precision of the variables, also under mixed precision.

    Args: those of `keras.layers.Conv2D`, without dilation, groups or channels first.

    Inputs are (batch, height, width, channels) of known size.

    Raises:
        InputError: dilation, groups, channels first or an unknown size.

    Source: Kim 2019's released code; the idea is Miyato et al. 2018's.
    """

    def __init__(self, filters: int, kernel_size: int | tuple[int, int], **settings: Any):
        super().__init__(filters, kernel_size, **settings)
        if (
            self.groups != 1
            or self.data_format != "channels_last"
            or set(self.dilation_rate) != {1}
        ):
            raise InputError(
                "SpectralConv2D takes images (batch, height, width, channels) and neither dilation "
                f"nor groups; got data_format={self.data_format!r}, "
                f"dilation_rate={self.dilation_rate}, groups={self.groups}"
            )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if None in input_shape[1:]:
            raise InputError(
                f"{self.name} needs images of known size, as the norm of a convolution depends on "
                f"it; got {tuple(input_shape)}: give keras.Input a height and a width"
            )
        super().build(input_shape)
        self.direction = self.add_weight(
            shape=(1, *input_shape[1:]),
            initializer=keras.initializers.TruncatedNormal(stddev=1.0),
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
            name="direction",
        )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        sigma, direction = self._power_iteration()
        if training:
            self.direction.assign(direction)
        kernel = tf.cast(self.kernel, sigma.dtype) / tf.maximum(sigma, 1)
        outputs = self._convolve(inputs, tf.cast(kernel, inputs.dtype))
        if self.use_bias:
            outputs = outputs + tf.cast(self.bias, outputs.dtype)
        return outputs if self.activation is None else self.activation(outputs)

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)  # kernel and bias only
        if self.built:
            store["direction"] = self.direction

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(store)
        if self.built:
            self.direction.assign(store["direction"])

    def spectral_norm(self) -> tf.Tensor:
        """sigma, the current estimate of the norm of the convolution by the stored kernel."""
        return self._power_iteration()[0]

    def _power_iteration(self) -> tuple[tf.Tensor, tf.Tensor]:
        """sigma and the next direction, (1, height, width, channels)."""
        before = tf.convert_to_tensor(self.direction)
        kernel = tf.cast(self.kernel, before.dtype)
        v = tf.nn.l2_normalize(self._convolve(before, kernel))
        back = tf.nn.conv2d_transpose(
            v, kernel, before.shape, strides=self.strides, padding=self.padding.upper()
        )
        after = tf.nn.l2_normalize(back)
        # ||A^T v||, with a finite gradient at zero
        sigma = tf.reduce_sum(back * after)
        # of a zero kernel nothing would be left to start the next iteration from
        return sigma, tf.where(sigma > 0, after, before)

    def _convolve(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.nn.conv2d(x, kernel, strides=self.strides, padding=self.padding.upper())


def vae_gan_28(*, variant: Variant = "text", latent_size: int = 10, channels: int = 1) -> VaeGan:
    """The VAE-GAN for 28x28 images, MNIST and Fashion-MNIST.

    - encoder: 4x4 convolutions with stride 2 of 64, 128, 256 filters, dense 2 * latent_size.
    - decoder: dense 1024 as images of 2x2x256, 4x4 transposed convolutions of 256 (stride 2), 128
      (stride 1, "valid": from 4x4 to 7x7), 32 and `channels` filters (stride 2), tanh at the end.
      The paper gives neither the shape 2x2x256 nor "valid"; both are the released code's, and with
      "same" throughout no square shape would lead to 28x28.
    - discriminator: 4x4 convolutions with stride 2 of 32, 128, 256, 256 filters, dense 512, dense
      1. It gives the logit, without the sigmoid that text and code end with.

    Every hidden layer has a ReLU and, but for the discriminator's first, batch normalisation; so
    has the encoder's last layer, without a ReLU. Momentum .99 and epsilon 1e-3 of the
    normalisations, Glorot's uniform initialisation and biases also before normalisations are as in
    the released code.

    Args:
        variant: "text": batch normalisation before ReLU, as the paper tables; "released": after it.
        latent_size: dimension of the latent space.
        channels: of the images.

    Returns:
        the three networks, untrained, for images in [-1, 1].

    Raises:
        InputError: an unknown variant, or a setting out of range.

    Source: Kim 2019, appendix A.3; decoder and discriminator are those of Larsen et al. 2016.
    """
    variant = as_variant(variant)
    latent_size = as_count("latent_size", latent_size, 1)
    shape = (28, 28, as_count("channels", channels, 1))

    inputs = keras.Input((latent_size,))
    x = _normalised(inputs, layers.Dense(2 * 2 * 256), variant)
    x = layers.Reshape((2, 2, 256))(x)
    for filters, strides, padding in ((256, 2, "same"), (128, 1, "valid"), (32, 2, "same")):
        deconvolution = layers.Conv2DTranspose(filters, 4, strides=strides, padding=padding)
        x = _normalised(x, deconvolution, variant)
    x = layers.Conv2DTranspose(shape[-1], 4, strides=2, padding="same", activation="tanh")(x)
    decoder = keras.Model(inputs, x, name="vae_gan_28_decoder")

    images = keras.Input(shape)
    x = layers.ReLU()(_strided(32, 4)(images))
    for filters in (128, 256, 256):
        x = _normalised(x, _strided(filters, 4), variant)
    x = _normalised(layers.Flatten()(x), layers.Dense(512), variant)
    discriminator = keras.Model(images, layers.Dense(1)(x), name="vae_gan_28_discriminator")

    encoder = _encoder(shape, latent_size, variant, size=4, name="vae_gan_28_encoder")
    return VaeGan(encoder, decoder, discriminator, value_range=(-1.0, 1.0))


def vae_gan_32(*, variant: Variant = "text", latent_size: int = 128, channels: int = 3) -> VaeGan:
    """The VAE-GAN for 32x32 images, CIFAR-10.

    - encoder: convolutions with stride 2 of 64, 128, 256 filters, dense 2 * latent_size; ReLU and
      batch normalisation after the convolutions, batch normalisation after the dense layer.
    - decoder: dense 8192 without an activation, as images of 4x4x512, 4x4 transposed convolutions
      with stride 2 of 256, 128 and 64 filters, with batch normalisation and ReLU, then a 3x3
      convolution of `channels` filters, tanh.
    - discriminator: convolutions of 64, 64, 128, 128, 256, 256, 512 filters, in turn 3x3 with
      stride 1 and 4x4 with stride 2, with spectral normalisation and leaky ReLU of slope .1; dense
      1 without spectral normalisation. It gives the logit, without the sigmoid that text and code
      end with.

    Momentum .99 and epsilon 1e-3 of the batch normalisations, Glorot's uniform initialisation and
    biases also before normalisations are as in the released code.

    Args:
        variant: "text": the encoder's kernels are 4x4, batch normalisation comes before ReLU, as
            the paper tables, and spectral normalisation is Miyato et al.'s: the kernel reshaped to
            a matrix with one column per filter is divided by its norm, always
            (`keras.layers.SpectralNormalization`, which in training also replaces the kernel by the
            result). "released": 5x5, batch normalisation after ReLU, and `SpectralConv2D`.
        latent_size: dimension of the latent space.
        channels: of the images.

    Returns:
        the three networks, untrained, for images in [-1, 1].

    Raises:
        InputError: an unknown variant, or a setting out of range.

    Source: Kim 2019, appendix A.3; decoder and discriminator are those of Miyato et al. 2018.
    """
    variant = as_variant(variant)
    latent_size = as_count("latent_size", latent_size, 1)
    shape = (32, 32, as_count("channels", channels, 1))

    inputs = keras.Input((latent_size,))
    x = layers.Reshape((4, 4, 512))(layers.Dense(4 * 4 * 512)(inputs))
    for filters in (256, 128, 64):
        deconvolution = layers.Conv2DTranspose(filters, 4, strides=2, padding="same")
        x = _normalised(x, deconvolution, variant)
    x = layers.Conv2D(shape[-1], 3, padding="same", activation="tanh")(x)
    decoder = keras.Model(inputs, x, name="vae_gan_32_decoder")

    images = keras.Input(shape)
    x = images
    for place, filters in enumerate((64, 64, 128, 128, 256, 256, 512)):
        size, strides = ((3, 1), (4, 2))[place % 2]
        x = _spectral(filters, size, strides, variant)(x)
        x = layers.LeakyReLU(negative_slope=_SLOPE)(x)
    x = layers.Dense(1)(layers.Flatten()(x))
    discriminator = keras.Model(images, x, name="vae_gan_32_discriminator")

    size = 4 if variant == "text" else 5
    encoder = _encoder(shape, latent_size, variant, size=size, name="vae_gan_32_encoder")
    return VaeGan(encoder, decoder, discriminator, value_range=(-1.0, 1.0))


def _encoder(
    shape: tuple[int, int, int], latent_size: int, variant: Variant, *, size: int, name: str
) -> keras.Model:
    images = keras.Input(shape)
    x = images
    for filters in (64, 128, 256):
        x = _normalised(x, _strided(filters, size), variant)
    x = layers.Dense(2 * latent_size)(layers.Flatten()(x))
    return keras.Model(images, layers.BatchNormalization()(x), name=name)


def _strided(filters: int, size: int) -> layers.Conv2D:
    return layers.Conv2D(filters, size, strides=2, padding="same")


def _spectral(filters: int, size: int, strides: int, variant: Variant) -> layers.Layer:
    settings = {"strides": strides, "padding": "same"}
    if variant == "released":
        return SpectralConv2D(filters, size, **settings)
    return layers.SpectralNormalization(layers.Conv2D(filters, size, **settings))


def _normalised(x: keras.KerasTensor, layer: layers.Layer, variant: Variant) -> keras.KerasTensor:
    """A layer with batch normalisation before (text) or after (released) its ReLU."""
    x = layer(x)
    if variant == "text":
        return layers.ReLU()(layers.BatchNormalization()(x))
    return layers.BatchNormalization()(layers.ReLU()(x))
