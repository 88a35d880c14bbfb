"""What `tfrobust measure` measures, a model on images, and the results."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

import reference_models
from reference_models.applications import PREFIX, find
from tfrobust import alignment
from tfrobust.alignment import check_sketch
from tfrobust.classifier import classes_of
from tfrobust.commands.measure.command import Resolved, Settings
from tfrobust.data import image_files, read_images
from tfrobust.errors import CorruptImageWarning, InputError

__all__ = ["Measured", "Subject", "prepare"]

# classes up to which the exact search is the cheaper one
_EXACT_UP_TO = 16
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
    """(images, height, width, channels) float32, what the model is given."""
    pictures: np.ndarray
    """The same before preprocessing, in [0, 1]."""
    files: tuple[str, ...]
    """Names relative to the folder."""
    skipped: tuple[str, ...]
    """Corrupt files, each with the reason."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """Everything measured on a subject."""

    table: pd.DataFrame
    """`Alignment.to_frame()` with the file names first."""
    attack: pd.DataFrame | None
    """`MinimalPerturbation.to_frame()` of the first images, with the file names first."""
    saliency: dict[str, np.ndarray] | None
    """`rows` of the pictured images in `table`, and their `gradients`."""
    decomposition: dict[str, Any]
    """How far the decomposition misses the logits, and the warning of it."""

    @property
    def measures(self) -> alignment.Alignment:
        """The table as `Alignment`."""
        return alignment.Alignment(
            **{name: self.table[name].to_numpy() for name in self.table if name != "file"}
        )


def prepare(command: Settings) -> tuple[Resolved, Subject]:
    """The model and its input, and the settings that results depend on.

    Raises:
        ValueError: unknown model or preprocessing, or settings that do not go together.
        NotLogitsError: the model has no logits to give.
        ModelFileError: a missing or damaged model or weight file, or one of another architecture.
        FileNotFoundError: no such folder, or no image in it.
        TooManyCorruptImagesError: too many corrupt images.
    """
    # whatever needs no model comes first: weights may have to be downloaded
    check_sketch(command.directions, command.failure_probability, "failure_probability")
    _check_model(command)
    preprocessing = _preprocessing(command)
    image_files(command.images)
    keras.utils.set_random_seed(command.seed)
    model, weights, file = _model(command)
    size, channels = _input_of(model, command)
    images, names, skipped = _images(command, size)
    if channels == 1:
        images = np.repeat((images @ _GREY)[..., None], 3, axis=-1)
    x = preprocessing(images)[..., :channels]
    subject = Subject(
        name=Path(command.model).stem.removeprefix(PREFIX),
        model=model,
        classes=classes_of(model, x),
        preprocessing=preprocessing,
        x=x,
        pictures=images[..., :channels] / 255,
        files=names,
        skipped=skipped,
    )
    search = command.search
    if search == "auto":
        search = "exact" if subject.classes <= _EXACT_UP_TO else "sketch"
    given = {field.name: getattr(command, field.name) for field in dataclasses.fields(Settings)}
    filled_in = {"weights": weights, "preprocessing": preprocessing.name, "search": search}
    settings = Resolved(
        **given | filled_in,
        weights_sha256=_digest_of_weights(model, file),
        images_sha256=_digest(*(name.encode() for name in names), images),
    )
    return settings, subject


def _check_model(command: Settings) -> None:
    """Raises: InputError for a name or settings with which no model can be built or loaded."""
    path = Path(command.model)
    if path.suffix == ".keras":
        if command.weights is not None or command.classes is not None:
            raise InputError(f"{path} holds its weights and classes: leave these settings out")
    elif find(command.model) is None:
        if path.suffix or path.exists():
            raise InputError(
                f"{path} is no .keras file. A file of weights alone goes with its architecture: "
                f"--model keras_applications:NAME --weights {path}"
            )
        reference_models.build(command.model)  # raises for an unknown name
        raise InputError(
            f"{command.model} has no weights of its own: train it, save it by "
            "reference_models.save and give the .keras file"
        )


def _model(command: Settings) -> tuple[keras.Model, str | None, Path | None]:
    """The model, the `weights` setting filled in, and the file that the weights are in."""
    path = Path(command.model)
    if path.suffix == ".keras":
        return reference_models.load(path), None, path
    weights = command.weights or "imagenet"
    shape = None if command.size is None else (command.size, command.size, 3)
    settings = {} if command.classes is None else {"classes": command.classes}
    model = reference_models.build(
        command.model,
        weights=None if weights == "none" else weights,
        input_shape=shape,
        **settings,
    )
    return model, weights, None if weights in ("none", "imagenet") else Path(weights)


def _preprocessing(command: Settings) -> reference_models.Preprocessing:
    name = command.preprocessing
    if name is None and find(command.model) is None:
        raise InputError(
            f"--preprocessing is needed for {command.model}: a model file does not say how pixels "
            f"were scaled in training, and every measure depends on it. Choose {_PREPROCESSINGS}."
        )
    return reference_models.preprocessing(name or command.model)


def _input_of(model: keras.Model, command: Settings) -> tuple[tuple[int, int], int]:
    """Height and width, and channels, that the model is given."""
    shape = model.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[-1] not in (1, 3):
        raise InputError(
            f"{command.model} takes inputs of shape {shape}; images are (batch, height, width, 3), "
            "or 1 for greyscale"
        )
    if shape[-1] == 1 and command.preprocessing not in ("unit", "tf", "none"):
        raise InputError(f"{command.model} takes greyscale images: choose unit, tf or none")
    asked = (command.size, command.size)
    if None in shape[1:3] and command.size is None:
        application = find(command.model) and reference_models.preprocessing(command.model)
        if application is None:
            raise InputError(f"{command.model} takes images of any size: give one by --size")
        asked = application.size
    for fixed, given in zip(shape[1:3], asked, strict=True):
        if None not in (fixed, given) and fixed != given:
            raise InputError(
                f"{command.model} takes images of {shape[1]}x{shape[2]} pixels, not {given}: leave "
                "--size out"
            )
    height, width = (fixed or given for fixed, given in zip(shape[1:3], asked, strict=True))
    return (height, width), shape[-1]


def _images(
    command: Settings, size: tuple[int, int]
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """RGB in 0..255, file names, and the corrupt files that were skipped."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CorruptImageWarning)
        images, names = read_images(
            command.images, size=size, limit=command.limit, max_corrupt=command.max_corrupt
        )
    skipped = []
    for warning in caught:
        if isinstance(warning.message, CorruptImageWarning):
            skipped.append(
                f"{warning.message.file} is corrupt and skipped ({warning.message.reason})"
            )
    skipped.sort()
    for text in skipped:
        print(f"warning: {text}")
    return images, names, tuple(skipped)


def _digest_of_weights(model: keras.Model, file: Path | None) -> str:
    if file is None:
        return _digest(*model.get_weights())
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(*parts: Any) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(np.ascontiguousarray(part) if isinstance(part, np.ndarray) else part)
    return sha.hexdigest()
