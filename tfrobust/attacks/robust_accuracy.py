"""Accuracy on the worst images that projected gradient descent finds in a ball."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from tqdm import tqdm

from tfrobust.arguments import as_count, as_pixels
from tfrobust.attacks.direction import all_finite
from tfrobust.attacks.projected_gradient import check_restarts, prepare_search, seeds_of
from tfrobust.attacks.search import Stop
from tfrobust.attacks.threat_model import ThreatModel
from tfrobust.classifier import Classifier
from tfrobust.data import Data, as_stream
from tfrobust.distribution import gather_rows, is_chief, worker_count, worker_index
from tfrobust.errors import InputError

__all__ = ["RobustAccuracy", "robust_accuracy"]


@dataclasses.dataclass(frozen=True)
class RobustAccuracy:
    """A classifier under one threat model; arrays have one row per example.

    Attributes:
        threat: the threat model.
        correct: (count,) bool, whether the unperturbed image is classified correctly.
        resisted: (count, restarts) bool, whether the search of each restart failed to change the
            class. In a worst-case run, examples that no search was spent on (misclassified, or
            changed by an earlier restart) are False.
        zero_gradient: (count,) bool, whether the gradient was zero at some step of some restart,
            so that the search stood still; see `BoundedPerturbation`.
        every_restart: whether each restart searched for every example.
    """

    threat: ThreatModel
    correct: np.ndarray
    resisted: np.ndarray
    zero_gradient: np.ndarray
    every_restart: bool

    def __len__(self) -> int:
        return len(self.correct)

    @property
    def accuracy(self) -> float:
        """Share of examples that are classified correctly without perturbation."""
        return float(np.mean(self.correct))

    @property
    def worst_case(self) -> float:
        """Share of examples that are correct and resist the searches of all restarts.

        An upper bound of the true robust accuracy: another attack may find more.
        """
        return float(np.mean(self.correct & self.resisted.all(axis=1)))

    @property
    def restart_accuracy(self) -> np.ndarray:
        """(restarts,) float64, accuracy on the images of each restart; NaN in a worst-case run.

        At least `worst_case`, except for examples that the perturbation makes correct.
        """
        if not self.every_restart:
            return np.full(self.resisted.shape[1], np.nan)
        return self.resisted.mean(axis=0)

    @property
    def mean(self) -> float:
        """Mean accuracy over restarts, as in Noack 2020's tables; NaN in a worst-case run."""
        return float(np.mean(self.restart_accuracy))

    @property
    def spread(self) -> float:
        """Sample standard deviation over restarts; NaN for one restart or a worst-case run."""
        values = self.restart_accuracy
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan

    def summary(self) -> dict[str, Any]:
        """The figures as plain data."""
        return {
            **dataclasses.asdict(self.threat),
            "examples": len(self),
            "accuracy": self.accuracy,
            "worst_case": self.worst_case,
            "restarts": self.resisted.shape[1],
            "mean": self.mean,
            "spread": self.spread,
            "zero_gradient": int(self.zero_gradient.sum()),
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per example, with a column for each restart."""
        columns = {f"resisted_{k + 1}": column for k, column in enumerate(self.resisted.T)}
        return pd.DataFrame(
            {"correct": self.correct, **columns, "zero_gradient": self.zero_gradient}
        )


def robust_accuracy(
    model: keras.Model,
    data: Data,
    threat_models: ThreatModel | Sequence[ThreatModel],
    *,
    restarts: int = 3,
    every_restart: bool = True,
    labels: Literal["true", "predicted"] = "true",
    stop: Stop = "success",
    seed: int = 0,
    batch_size: int = 100,
) -> tuple[RobustAccuracy, ...]:
    """Accuracy under each threat model, by projected gradient descent.

    Args:
        model: any classifier. Where its layers compute in half precision, searches do; classes are
            decided with all layers in float32.
        data: images (count, *input) and labels, or as `fit` takes them; read batch by batch.
        threat_models: one or several.
        restarts: searches from different random starts; a threat model without a random start is
            searched once.
        every_restart: each restart searches for every example, which gives the mean and spread over
            restarts as well as the worst case. False: only for examples that are still classified
            correctly, which gives the same worst case for less.
        labels: "true", or "predicted" for the model's own predictions.
        stop: "success", or "last" for the last iterate as in the released codes; see `pgd`.
        seed: of random starts, which do not depend on the batch size.
        batch_size: examples per call; bounds the memory.

    Returns:
        one `RobustAccuracy` per threat model, in order.

    Raises:
        InputError: an argument is malformed, images lie outside a threat model's range, or a
            radius is larger than the range allows.
        NotLogitsError: the model has no logits to attack.
    """
    if labels not in ("true", "predicted"):
        raise InputError(f'labels must be "true" or "predicted", got {labels!r}')
    several = isinstance(threat_models, Iterable)
    threats = list(threat_models) if several else [threat_models]
    if not threats or not all(isinstance(threat, ThreatModel) for threat in threats):
        raise InputError("threat_models must be one or several ThreatModels")
    batch_size = as_count("batch_size", batch_size, 1)
    stream = as_stream(model, data, "data")
    sample = np.zeros((1, *stream.input_shape), np.float32)
    counts = []
    for threat in threats:
        threat.check_epsilon(stream.input_shape)
        check_restarts(dataclasses.replace(threat, random_start="ball"), restarts)
        counts.append(1 if threat.random_start is None else int(restarts))
    searches = [prepare_search(model, sample, threat, stop=stop) for threat in threats]
    outputs = Classifier.of(model, sample).compiled_outputs(in_single_precision=True)

    parts: list[list[tuple[np.ndarray, ...]]] = [[] for _ in threats]
    for rows, images, classes in _batches(stream, batch_size):
        values = outputs(images)
        predicted = np.argmax(values, axis=1).astype(np.int32)
        classes = predicted if labels == "predicted" else classes
        correct = (predicted == classes) & all_finite(values).numpy()
        for part, threat, search, count in zip(parts, threats, searches, counts, strict=True):
            images = as_pixels("images", images, threat.value_range)
            run = _Restarts(search, threat, images, classes, rows, seed)
            part.append(run.take(count, correct, every_restart))
    results = []
    for threat, part in zip(threats, parts, strict=True):
        columns = [gather_rows(np.concatenate(column)) for column in zip(*part, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        correct, resisted, zero_gradient = (column[order] for column in columns[1:])
        results.append(RobustAccuracy(threat, correct, resisted, zero_gradient, every_restart))
    return tuple(results)


def _batches(stream: Any, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Positions in the data set, images and labels of each batch of this worker."""
    workers, worker = worker_count(), worker_index()
    first = 0
    bar = tqdm(
        total=-(-stream.examples // workers),
        desc="robust accuracy",
        unit="image",
        delay=2,
        leave=False,
        disable=None if is_chief() else True,
    )
    with stream.errors(), bar:
        for batch in stream.evaluation_batches(batch_size, workers=workers, worker=worker):
            images, classes = batch["images"].numpy(), batch["labels"].numpy()
            yield worker + workers * np.arange(first, first + len(images)), images, classes
            first += len(images)
            bar.update(len(images))


@dataclasses.dataclass
class _Restarts:
    """One batch under one threat model."""

    search: Callable[..., tuple[np.ndarray, ...]]
    threat: ThreatModel
    images: np.ndarray
    classes: np.ndarray
    rows: np.ndarray
    seed: int

    def take(
        self, count: int, correct: np.ndarray, every_restart: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Positions, `correct`, `resisted` and `zero_gradient` after `count` restarts."""
        resisted = np.zeros((len(self.rows), count), bool)
        zero_gradient = np.zeros(len(self.rows), bool)
        searched = np.arange(len(self.rows)) if every_restart else np.flatnonzero(correct)
        for restart in range(count):
            if not len(searched):
                break
            _, success, predicted, stalled, _ = self.search(
                tf.constant(self.images[searched]),
                tf.constant(self.classes[searched]),
                tf.fill([len(searched)], np.float32(self.threat.epsilon)),
                tf.constant(seeds_of(self.seed, restart, self.rows[searched])),
            )
            # outputs that are not finite are no correct classification
            survived = ~success & (predicted >= 0)
            resisted[searched, restart] = survived
            zero_gradient[searched] |= stalled
            if not every_restart:
                searched = searched[survived]
        return self.rows, correct, resisted, zero_gradient
