"""Settings that make no sense, said in one line before anything is computed or written."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import keras

import reference_models
from tfrobust import bounds, data
from tfrobust.classifier import as_images, model_input_shape
from tfrobust.errors import InputError

__all__ = [
    "ACTIVATIONS",
    "IMAGES",
    "SECOND_ATTACKS",
    "TABLES",
    "at_least",
    "distinct",
    "fits",
    "one_of",
    "positive",
]

IMAGES = ("digits", "mnist", "cifar10")
TABLES = ("iris", "wine", "spambase")
# beside FGS, which always runs
SECOND_ATTACKS = ("none", "fast_gradient_value", "lbfgs", "carlini_wagner", "deepfool")
# of Theorem 4.2
ACTIVATIONS = ("linear", "relu", "sigmoid", "tanh")


def option(name: str) -> str:
    """A setting as the command line spells it."""
    return "--" + name.replace("_", "-")


def at_least(settings: Any, least: int, *names: str) -> None:
    """Raises: InputError where one of the settings, or an entry of it, is less than `least`."""
    for name in names:
        for value in _entries(settings, name):
            if value < least:
                raise InputError(f"{option(name)} must be at least {least}, got {value}")


def positive(settings: Any, *names: str, zero: bool = False) -> None:
    """Raises: InputError where a number is not finite and positive; `zero` allows 0 too."""
    for name in names:
        for value in _entries(settings, name):
            if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
                words = "not negative" if zero else "positive"
                raise InputError(f"{option(name)} must be finite and {words}, got {value:g}")


def one_of(settings: Any, allowed: Collection[str], *names: str) -> None:
    """Raises: InputError where one of the settings, or an entry of it, is not allowed."""
    for name in names:
        for value in _entries(settings, name):
            if value not in allowed:
                raise InputError(f"{option(name)} takes {', '.join(allowed)}, got {value!r}")


def distinct(settings: Any, *names: str) -> None:
    """Raises: InputError where a list is empty, or holds a value twice (to six digits)."""
    for name in names:
        values = [v if isinstance(v, str) else f"{v:g}" for v in getattr(settings, name)]
        if not values:
            raise InputError(f"{option(name)} needs at least one value")
        doubles = sorted({value for value in values if values.count(value) > 1})
        if doubles:
            raise InputError(f"{option(name)} holds {', '.join(doubles)} more than once")


def fits(
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
        InputError: other inputs or classes, weights that are not finite, a layer without a rule, or
            no convolution.
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
    test = data.load(dataset, "test", data_dir)
    try:
        x = as_images(model, test.images[:1])
        bounds.robustness(model, x, tighten=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the thesis's printed rules")
            bounds.robustness(model, x, rules="thesis")
        classes = model.output_shape[-1]
    except (TypeError, ValueError) as error:
        raise InputError(f"{given} does not go with {dataset}: {error}") from error
    if classes != test.classes:
        raise InputError(
            f"{given} has {classes} classes, {dataset} has {test.classes} (input "
            f"{model_input_shape(model)})"
        )


def _entries(settings: Any, name: str) -> tuple[Any, ...]:
    value = getattr(settings, name)
    return value if isinstance(value, tuple) else (value,)
