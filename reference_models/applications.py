"""Models of `keras.applications`: any constructor by name, as logits, with weights from files."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import keras
import numpy as np

from reference_models.storage import ModelFileError
from reference_models.weights import finalize, load_weights, weight_file
from tfrobust.classifier import all_layers, local_variable
from tfrobust.errors import InputError
from tfrobust.layers import FrozenBatchNormalization

__all__ = ["PREFIX", "application", "constructors", "default_size", "find", "module_of"]

Constructor = Callable[..., keras.Model]
Statistics = Literal["batch", "frozen", "synchronized"]
PREFIX = "keras_applications:"
_IMAGENET_CLASSES = 1000
# MobileNetV3 has no default size; its ImageNet weights were trained at this one
_USUAL_SIZE = (224, 224)


@functools.cache
def constructors() -> dict[str, Constructor]:
    """Every model constructor of `keras.applications`, by its name in lower case."""
    models = {
        name: value
        for name, value in vars(keras.applications).items()
        if callable(value) and hasattr(inspect.getmodule(value), "preprocess_input")
    }
    return {name.lower(): models[name] for name in sorted(models)}


def find(name: str) -> Constructor | None:
    """The constructor `name`, in any case and with or without "keras_applications:"; or None."""
    return constructors().get(name.lower().removeprefix(PREFIX))


def module_of(constructor: Constructor) -> ModuleType:
    """The module that defines a constructor and its `preprocess_input`."""
    return inspect.getmodule(constructor)


@functools.cache
def default_size(constructor: Constructor) -> tuple[int, int]:
    """A constructor's default height and width. Builds its graph, which takes some seconds."""
    with keras.StatelessScope():
        height, width = constructor(weights=None).input_shape[1:3]
    return _USUAL_SIZE if height is None else (height, width)


def application(
    constructor: Constructor,
    *,
    weights: Literal["imagenet"] | str | Path | None = None,
    input_shape: tuple[int | None, int | None, int] | None = None,
    classes: int = _IMAGENET_CLASSES,
    bn_momentum: float | None = None,
    statistics: Statistics = "batch",
) -> keras.Model:
    """A model of Keras Applications whose output is logits.

    Its input is what `preprocessing` of the same name returns.

    Args:
        constructor: of `constructors()`.
        weights: None for random ones, "imagenet" for Keras's (downloaded once), or a file; see
            `load_weights`.
        input_shape: height, width, channels; None for the constructor's default.
        classes: number of logits; the pretrained weights have 1,000.
        bn_momentum: of all batch normalisation layers; .999 in Etmann 2019's released code. None
            for the constructor's.
        statistics: of batch normalisation in training: those of the "batch" per device, of the
            global batch over all devices ("synchronized"), or the moving ones without updates
            ("frozen", the released code's learning_phase=0; gamma and beta are still trained).

    Returns:
        a Functional model (batch, *input_shape) -> logits (batch, classes).

    Raises:
        InputError: a setting is out of range, the model or its weights do not support the input
            shape, or the model with `bn_momentum` has no batch normalisation.
        ModelFileError: the ImageNet weights cannot be downloaded, or the file is missing,
            truncated or of another architecture.
    """
    _validate(weights, input_shape, classes, bn_momentum, statistics)
    if weights == "imagenet":
        model = _pretrained(constructor, input_shape)
    else:
        path = None if weights is None else weight_file(weights)
        try:
            model = constructor(
                weights=None, input_shape=input_shape, classes=classes, classifier_activation=None
            )
        except ValueError as error:  # of Keras, for a shape that is too small for the network
            raise InputError(f"{constructor.__name__} cannot be built: {error}") from error
        if path is not None:
            load_weights(model, path)
            model = _rescaled_twice(model, constructor)
    return _with_statistics(model, statistics, bn_momentum)


def _validate(
    weights: Any, input_shape: Any, classes: int, bn_momentum: float | None, statistics: str
) -> None:
    if statistics not in get_args(Statistics):
        raise InputError(f"statistics is one of {get_args(Statistics)}, got {statistics!r}")
    if bn_momentum is not None and not 0 <= bn_momentum <= 1:
        raise InputError(f"bn_momentum lies in 0..1, got {bn_momentum}")
    if classes < 2:
        raise InputError(f"classes must be at least 2, got {classes}")
    if input_shape is not None and len(input_shape) != 3:
        raise InputError(f"input_shape is (height, width, channels), got {input_shape}")
    if weights == "imagenet" and classes != _IMAGENET_CLASSES:
        raise InputError(
            f"the ImageNet weights have {_IMAGENET_CLASSES} classes, got classes={classes}"
        )


def _pretrained(constructor: Constructor, input_shape: Any) -> keras.Model:
    # Keras refuses other shapes with these weights, but not other input tensors
    tensor = None if input_shape is None else keras.Input(input_shape)
    try:
        model = constructor(weights="imagenet", classifier_activation=None, input_tensor=tensor)
    except Exception as error:  # a download may raise any error of the network
        name = constructor.__name__
        target = local_variable(error, "download_target")
        loaded = local_variable(error, "weights_path")
        if target is not None:
            raise ModelFileError(
                f"the ImageNet weights of {name} could not be downloaded ({error}). Put the file "
                f"{Path(target).name} from {local_variable(error, 'origin')} into "
                f"{Path(target).parent} (Keras's cache, ~/.keras/models unless moved), or give it "
                "as weights=path."
            ) from error
        if loaded is not None and isinstance(error, OSError):
            raise ModelFileError(
                f"{loaded}, the ImageNet weights of {name}, cannot be read ({error}). Delete it, "
                "so that it is downloaded again, or give a file as weights=path."
            ) from error
        if input_shape is not None and isinstance(error, ValueError):
            raise InputError(
                f"the ImageNet weights of {name} do not fit input_shape={input_shape}; leave it "
                f"out for the shape at which they were trained. {error}"
            ) from error
        raise
    if tensor is None:
        return model
    # the constructor puts the input tensor into a list, so that input_shape would be a list
    return keras.Model(model.inputs[0], model.outputs[0], name=model.name)


def _rescaled_twice(model: keras.Model, constructor: Constructor) -> keras.Model:
    """`model` with the layer that Keras adds to EfficientNet for weights="imagenet" only.

    The ImageNet files hold standard deviations where the normalisation expects variances, which
    Keras corrects by a second rescaling. A model without it computes another function.
    """
    deviations = getattr(module_of(constructor), "IMAGENET_STDDEV_RGB", None)
    normalisations = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.Normalization) and layer.weights
    ]
    if deviations is None or not normalisations:
        return model
    variance = np.asarray(normalisations[0].adapt_variance)
    if variance.shape != (3,) or not np.allclose(variance, deviations, rtol=1e-3, atol=0):
        return model
    rescaling = keras.layers.Rescaling([1 / math.sqrt(deviation) for deviation in deviations])

    def call(layer: keras.layers.Layer, *arguments: Any, **keywords: Any) -> Any:
        output = layer(*arguments, **keywords)
        return rescaling(output) if layer.name == normalisations[0].name else output

    return _clone(model, call_function=call)


def _with_statistics(
    model: keras.Model, statistics: Statistics, momentum: float | None
) -> keras.Model:
    normalisations = [
        layer for layer in all_layers(model) if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if momentum is not None and not normalisations:
        raise InputError(f"{model.name} has no batch normalisation: leave bn_momentum out")
    for layer in normalisations:
        layer.synchronized = statistics == "synchronized"
        layer.momentum = layer.momentum if momentum is None else float(momentum)
    if statistics != "frozen" or not normalisations:
        return model

    def frozen(layer: keras.layers.Layer) -> keras.layers.Layer:
        plain = isinstance(layer, keras.layers.BatchNormalization)
        kind = FrozenBatchNormalization if plain else type(layer)
        return kind.from_config(layer.get_config())

    return _clone(model, clone_function=frozen)


def _clone(model: keras.Model, **functions: Any) -> keras.Model:
    """`keras.models.clone_model` that keeps the input's name and the weights' values."""
    inputs = keras.Input(model.input_shape[1:], name=model.layers[0].name)
    clone = keras.models.clone_model(model, input_tensors=inputs, **functions)
    clone.set_weights(model.get_weights())
    finalize(clone)
    return clone
