"""A VAE-GAN: a variational autoencoder whose decoder is a generator (Larsen et al. 2016)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrobust.arguments import as_pixels, as_range
from tfrobust.classifier import as_images
from tfrobust.errors import InputError

__all__ = ["VaeGan"]


@dataclasses.dataclass(frozen=True, eq=False)
class VaeGan:
    """The three networks of a VAE-GAN.

    Args:
        encoder: images (batch, height, width, channels) to (batch, 2 * latent_size), the means of
            the latent normal distribution, then the logarithms of its variances.
        decoder: latent vectors (batch, latent_size) to images.
        discriminator: images to (batch, 1), the logit of being real, without a sigmoid.
        value_range: smallest and largest pixel of the images.

    Raises:
        InputError: the networks do not fit together.

    Source: Kim 2019, appendix A.3.
    """

    encoder: keras.Model
    decoder: keras.Model
    discriminator: keras.Model
    _: dataclasses.KW_ONLY
    value_range: tuple[float, float] = (-1.0, 1.0)
    _functions: dict[Any, Any] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "value_range", as_range(self.value_range))
        image, latent = self.encoder.input_shape[1:], self.decoder.input_shape[1:]
        expected = {
            "encoder": (self.encoder.output_shape[1:], (2 * latent[0],)),
            "decoder": (self.decoder.output_shape[1:], image),
            "discriminator": (self.discriminator.output_shape[1:], (1,)),
            "discriminator's input": (self.discriminator.input_shape[1:], image),
        }
        for name, (shape, wanted) in expected.items():
            if tuple(shape) != tuple(wanted):
                raise InputError(
                    f"the {name} has shape {tuple(shape)}, but the other networks need {wanted}"
                )

    @property
    def latent_size(self) -> int:
        """Dimension of the latent space."""
        return self.decoder.input_shape[-1]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images."""
        return tuple(self.encoder.input_shape[1:])

    @property
    def networks(self) -> dict[str, keras.Model]:
        """The three networks by name."""
        return {
            "encoder": self.encoder,
            "decoder": self.decoder,
            "discriminator": self.discriminator,
        }

    def compiled(self, build: Callable[..., Callable[..., Any]], *options: Hashable) -> Any:
        """The graph function `build(self, *options)` of images and seeds (batch, 2), traced once.

        Args:
            build: a module-level function; together with `options` the key of the function.
            options: hashable.
        """
        key = build, options
        if key not in self._functions:
            signature = (
                tf.TensorSpec([None, *self.image_shape], tf.float32),
                tf.TensorSpec([None, 2], tf.int32),
            )
            self._functions[key] = tf.function(
                build(self, *options), input_signature=signature, autograph=False
            )
        return self._functions[key]

    def checked(self, x: Any, name: str = "x") -> np.ndarray:
        """Images (batch, *image_shape) float32, clipped to the value range.

        Raises:
            InputError: another size, not finite, or outside the range by more than rounding.
        """
        return as_pixels(name, as_images(self.encoder, x, name), self.value_range)
