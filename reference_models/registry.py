"""`build`: every architecture by its name."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from typing import Any, Literal, overload

import keras

from reference_models.applications import PREFIX, application, constructors, find
from reference_models.kim2019 import kim_cifar_cnn, kim_mnist_cnn, kim_toy_mlp
from reference_models.lenet import lenet5
from reference_models.mlp import linear, mlp
from reference_models.mnist_cnn import mnist_cnn
from reference_models.network_in_network import cifar_nin
from reference_models.noack2020 import noack_mnist_cnn
from reference_models.vae_gan import vae_gan_28, vae_gan_32
from reference_models.wide_resnet import wide_resnet
from tfrobust.errors import InputError
from tfrobust.manifold import VaeGan

__all__ = ["build", "names"]

# pooling layers before the normalization in LeNet-LRN1, 2 and 3
_AFTER = {1: (1,), 2: (2,), 3: (1, 2)}


def _mlp(name: str, features: int, hidden: tuple[int, ...], classes: int) -> Any:
    return functools.partial(
        mlp, input_shape=(features,), hidden=hidden, classes=classes, name=name
    )


_BUILDERS: dict[str, Callable[..., keras.Model | VaeGan]] = {
    "mnist_cnn": mnist_cnn,
    # Peck 2017
    "lenet5": lenet5,
    **{
        f"lenet5_{kind}{number}": functools.partial(lenet5, normalization=kind, after=after)
        for kind in ("lrn", "bn")
        for number, after in _AFTER.items()
    },
    "cifar_nin": cifar_nin,
    "mlp": mlp,
    "iris_mlp": _mlp("iris_mlp", 4, (5,), 3),
    "wine_mlp": _mlp("wine_mlp", 13, (5, 3), 3),
    "spambase_mlp": _mlp("spambase_mlp", 57, (7, 5, 3), 2),
    "linear": linear,
    # Zagoruyko 2016
    "wide_resnet_28_10": wide_resnet,
    # Kim 2019
    "kim_mnist_cnn": kim_mnist_cnn,
    "kim_cifar_cnn": kim_cifar_cnn,
    "kim_toy_mlp": kim_toy_mlp,
    "vae_gan_28": vae_gan_28,
    "vae_gan_32": vae_gan_32,
    # Noack 2020
    "noack_mnist_cnn": noack_mnist_cnn,
}


def names() -> list[str]:
    """Names that `build` takes; those of Keras Applications in lower case."""
    return sorted([*_BUILDERS, *constructors()])


@overload
def build(name: Literal["vae_gan_28", "vae_gan_32"], **settings: Any) -> VaeGan: ...


@overload
def build(name: str, **settings: Any) -> keras.Model: ...


def build(name: str, **settings: Any) -> keras.Model | VaeGan:
    """A model that returns logits (batch, classes); untrained unless `weights` is given.

    "vae_gan_28" and "vae_gan_32" are no classifiers: they return a `tfrobust.manifold.VaeGan`,
    whose three networks are models of their own, to be saved and loaded one by one.

    Args:
        name: one of `names()`; a constructor of Keras Applications in any case, also as
            "keras_applications:MobileNetV2".
        settings: of the architecture, such as `input_shape` and `classes`. For Keras Applications
            also `weights` (None, "imagenet" or a file), `bn_momentum` and `statistics`: see
            `reference_models.applications.application`.

    Raises:
        InputError: unknown name, or a setting out of range.
        TypeError: a setting that the architecture does not have.
        ModelFileError: the weights cannot be read, or are of another architecture.
    """
    if name in _BUILDERS:
        return _BUILDERS[name](**settings)
    constructor = find(name)
    if constructor is None:
        close = difflib.get_close_matches(name.lower().removeprefix(PREFIX), names(), 1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise InputError(f"unknown model {name!r}; there are {', '.join(names())}.{hint}")
    return application(constructor, **settings)
