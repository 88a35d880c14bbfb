"""The subject of a command: a model of any origin, with images preprocessed for it."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np

import reference_models
from reference_models.applications import PREFIX, find
from tfrobust.classifier import classes_of
from tfrobust.data import image_files, read_images
from tfrobust.errors import CorruptImageWarning, InputError

__all__ = ["ModelSettings", "Subject", "digest", "load_subject"]

_GREY = np.float32([0.299, 0.587, 0.114])  # ITU-R BT.601
_PREPROCESSINGS = (
    "none (0..255 as they are, also for a model that rescales by itself), unit (to 0..1), "
    "tf (to -1..1), torch (0..1, then ImageNet's mean and deviation), caffe (BGR, ImageNet's mean "
    "subtracted), or the name of a Keras application"
)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model with the images that it is measured on."""

    name: str
    model: keras.Model
    classes: int
    preprocessing: reference_models.Preprocessing
    x: np.ndarray
    """(images, height, width, channels) float32, the model's input."""
    pictures: np.ndarray
    """The same before preprocessing, in [0, 1]."""
    files: tuple[str, ...]
    """Names relative to the folder."""
    skipped: tuple[str, ...]
    """Corrupt files, each with the reason."""
    weights: str | None
    """The setting with its default filled in; None for a .keras file."""
    weights_sha256: str
    """Of the file's bytes; of the values where there is no file."""
    images_sha256: str
    """Of file names and pixels, as cropped."""


class ModelSettings(Protocol):
    """The settings of a command that determine a model and its input."""

    model: str
    weights: str | None
    classes: int | None
    size: int | None
    preprocessing: str | None
    limit: int
    max_corrupt: int
    seed: int


def load_subject(settings: ModelSettings, images: str | Path | Sequence[Path]) -> Subject:
    """The model, built or loaded, and its input.

    Args:
        settings: of the command.
        images: a folder, of which the first `limit` images are taken, or files.

    Raises:
        InputError: unknown model or preprocessing, or incompatible settings.
        NotLogitsError: the model has no logits to give.
        ModelFileError: a missing or damaged model or weight file, or one of another architecture.
        MissingFileError: no such folder, or no image in it.
        TooManyCorruptImagesError: too many corrupt images.
    """
    # all checks without the model come first: its weights may have to be downloaded
    _check_model(settings)
    preprocessing = _preprocessing(settings)
    image_files(images)
    keras.utils.set_random_seed(settings.seed)
    model, weights, file = _model(settings)
    size, channels = _input_of(model, settings)
    pixels, names, skipped = _images(settings, images, size)
    if channels == 1:
        pixels = np.repeat((pixels @ _GREY)[..., None], 3, axis=-1)
    x = preprocessing(pixels)[..., :channels]
    return Subject(
        name=Path(settings.model).stem.removeprefix(PREFIX),
        model=model,
        classes=classes_of(model, x),
        preprocessing=preprocessing,
        x=x,
        pictures=pixels[..., :channels] / 255,
        files=names,
        skipped=skipped,
        weights=weights,
        weights_sha256=_digest_of_weights(model, file),
        images_sha256=digest(*(name.encode() for name in names), pixels),
    )


def _check_model(settings: ModelSettings) -> None:
    """Raises: InputError if the settings do not determine a model."""
    path = Path(settings.model)
    if path.suffix == ".keras":
        if settings.weights is not None or settings.classes is not None:
            raise InputError(f"{path} holds its weights and classes: leave these settings out")
    elif find(settings.model) is None:
        if path.suffix or path.exists():
            raise InputError(
                f"{path} is no .keras file. A file of weights alone goes with its architecture: "
                f"--model keras_applications:NAME --weights {path}"
            )
        reference_models.build(settings.model)  # raises for an unknown name
        raise InputError(
            f"{settings.model} has no pretrained weights: train it, save it by "
            "reference_models.save and give the .keras file"
        )


def _model(settings: ModelSettings) -> tuple[keras.Model, str | None, Path | None]:
    """The model, the resolved setting `weights`, and the file of the weights, if there is one."""
    path = Path(settings.model)
    if path.suffix == ".keras":
        return reference_models.load(path), None, path
    weights = settings.weights or "imagenet"
    shape = None if settings.size is None else (settings.size, settings.size, 3)
    classes = {} if settings.classes is None else {"classes": settings.classes}
    model = reference_models.build(
        settings.model,
        weights=None if weights == "none" else weights,
        input_shape=shape,
        **classes,
    )
    return model, weights, None if weights in ("none", "imagenet") else Path(weights)


def _preprocessing(settings: ModelSettings) -> reference_models.Preprocessing:
    name = settings.preprocessing
    if name is None and find(settings.model) is None:
        raise InputError(
            f"--preprocessing is needed for {settings.model}: a model file does not say how pixels "
            f"were scaled in training, and every measure depends on it. Choose {_PREPROCESSINGS}."
        )
    return reference_models.preprocessing(name or settings.model)


def _input_of(model: keras.Model, settings: ModelSettings) -> tuple[tuple[int, int], int]:
    """(height, width) and channels of the model's input."""
    shape = model.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[-1] not in (1, 3):
        raise InputError(
            f"{settings.model} takes inputs of shape {shape}; images are (batch, height, width, "
            "3), or 1 for greyscale"
        )
    if shape[-1] == 1 and settings.preprocessing not in ("unit", "tf", "none"):
        raise InputError(f"{settings.model} takes greyscale images: choose unit, tf or none")
    requested = (settings.size, settings.size)
    if None in shape[1:3] and settings.size is None:
        application = find(settings.model) and reference_models.preprocessing(settings.model)
        if application is None:
            raise InputError(f"{settings.model} takes images of any size: give one by --size")
        requested = application.size
    for fixed, given in zip(shape[1:3], requested, strict=True):
        if None not in (fixed, given) and fixed != given:
            raise InputError(
                f"{settings.model} takes images of {shape[1]}x{shape[2]} pixels, not {given}: "
                "leave --size out"
            )
    height, width = (fixed or given for fixed, given in zip(shape[1:3], requested, strict=True))
    return (height, width), shape[-1]


def _images(
    settings: ModelSettings, images: str | Path | Sequence[Path], size: tuple[int, int]
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """RGB in 0..255, file names, and the corrupt files that were skipped."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CorruptImageWarning)
        pixels, names = read_images(
            images, size=size, limit=settings.limit, max_corrupt=settings.max_corrupt
        )
    corrupt = [w.message for w in caught if isinstance(w.message, CorruptImageWarning)]
    skipped = sorted(f"{image.file} is corrupt and skipped ({image.reason})" for image in corrupt)
    for text in skipped:
        print(f"warning: {text}", file=sys.stderr)
    return pixels, names, tuple(skipped)


def _digest_of_weights(model: keras.Model, file: Path | None) -> str:
    if file is None:
        return digest(*model.get_weights())
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(*parts: Any) -> str:
    """SHA-256 of the concatenation of bytes and of arrays' values."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(np.ascontiguousarray(part) if isinstance(part, np.ndarray) else part)
    return sha.hexdigest()
