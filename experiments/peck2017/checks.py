"""Settings that name data, attacks and models: choices, and what a model file must hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

import reference_models
from experiments.common.checks import option
from experiments.peck2017.comparison import printed_bound
from tfrobust import bounds, data
from tfrobust.classifier import as_images
from tfrobust.commands import concerning
from tfrobust.errors import InputError

__all__ = ["Activation", "Images", "SecondAttack", "TableName", "check_model_file"]

Images = Literal["digits", "mnist", "cifar10"]
TableName = Literal["iris", "wine", "spambase"]
# beside FGS, which always runs
SecondAttack = Literal["none", "fast_gradient_value", "lbfgs", "carlini_wagner", "deepfool"]
# of Theorem 4.2
Activation = Literal["linear", "relu", "sigmoid", "tanh"]


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
        InputError: no model file, a layer without a rule, another shape or number of classes than
            the data's, weights that are not finite, or no convolution.
        DataNotFoundError: the data are not there.
    """
    path = getattr(settings, name)
    if path is None:
        return
    test = data.load(dataset, "test", data_dir=data_dir)
    with concerning(f"{option(name)} {path}"):
        model = reference_models.load(path)
        if convolution and not any(isinstance(each, keras.layers.Conv2D) for each in model.layers):
            raise InputError("a model with a Conv2D layer is needed")
        x = as_images(model, test.images[:1], dataset)
        if model.output_shape[-1] != test.classes:
            raise InputError(
                f"it has {model.output_shape[-1]} classes, {dataset} has {test.classes}"
            )
        if not all(np.isfinite(weights).all() for weights in model.get_weights()):
            raise InputError("it holds weights that are not finite")
        bounds.robustness(model, x, tighten=False)
        printed_bound(model, x)
