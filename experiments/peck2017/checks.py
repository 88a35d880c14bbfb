"""Checks of settings that name data, attacks and models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np

import reference_models
from experiments.common.checks import option
from experiments.peck2017.comparison import printed_bound
from tfrobust import bounds, data
from tfrobust.classifier import model_input_shape
from tfrobust.errors import InputError

__all__ = ["ACTIVATIONS", "IMAGES", "SECOND_ATTACKS", "TABLES", "check_model_file"]

IMAGES = ("digits", "mnist", "cifar10")
TABLES = ("iris", "wine", "spambase")
# beside FGS, which always runs
SECOND_ATTACKS = ("none", "fast_gradient_value", "lbfgs", "carlini_wagner", "deepfool")
# of Theorem 4.2
ACTIVATIONS = ("linear", "relu", "sigmoid", "tanh")


def check_model_file(
    settings: Any, name: str, dataset: str, data_dir: Path | None, *, convolution: bool = False
) -> None:
    """Check a setting that names a trained model's file, if it is given.

    Args:
        settings: of the experiment.
        name: of the setting.
        dataset: that the model has to take.
        data_dir: where that is.
        convolution: the model needs a Conv2D layer of its own.

    Raises:
        InputError: other inputs or classes, weights that are not finite, or no convolution.
        UnsupportedLayerError: a layer without a rule.
        ModelFileError: the file cannot be loaded.
        DataNotFoundError: the data are not there.
    """
    path = getattr(settings, name)
    if path is None:
        return
    model = reference_models.load(path)
    given = f"{option(name)} {path}"
    if convolution and not any(isinstance(each, keras.layers.Conv2D) for each in model.layers):
        raise InputError(f"{given} must hold a model with a Conv2D layer")
    test = data.load(dataset, "test", data_dir=data_dir)
    expected, shape = model_input_shape(model), test.images.shape[1:]
    classes = model.output_shape[-1]
    if expected is not None and (
        len(expected) != len(shape)
        or any(a is not None and a != b for a, b in zip(expected, shape, strict=True))
    ):
        raise InputError(f"{given} takes inputs {expected}, {dataset} has {shape}")
    if classes != test.classes:
        raise InputError(f"{given} has {classes} classes, {dataset} has {test.classes}")
    if not all(np.isfinite(weights).all() for weights in model.get_weights()):
        raise InputError(f"{given} holds weights that are not finite")
    bounds.robustness(model, test.images[:1], tighten=False)
    printed_bound(model, test.images[:1])
