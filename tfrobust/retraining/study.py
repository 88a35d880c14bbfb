"""The retrains behind a score: which there are, what they are trained on, which are finished."""

from __future__ import annotations

import functools
import gc
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tfrobust.arguments import as_count, as_not_negative, as_seed
from tfrobust.data import Arrays, Data, Stream, as_stream
from tfrobust.distribution import is_chief
from tfrobust.errors import InputError
from tfrobust.retraining.curves import Method, RetrainingCurve, RetrainingScore
from tfrobust.retraining.finished import FinishedRetrains
from tfrobust.retraining.occlusion import (
    as_attribution,
    as_colour,
    as_fraction,
    mean_colour,
    occluded_pixels,
    random_pixels,
)
from tfrobust.retraining.stream import OccludedStream, with_rows
from tfrobust.training import RepeatedFit, evaluate

__all__ = ["Study"]

# numbers of the kinds of retrains, in their seeds
_KINDS = {"roar": 0, "kar": 1, "random": 2, "unoccluded": 3}
# bytes of images that are worth a full garbage collection, which takes a third of a second
_LARGE = 2**25
# from 0 (training) or 1 (test), a fraction and a retrain's seed to which pixels are replaced
_Occlusion = Callable[[int, float, int], np.ndarray]


class Study:
    """The data and settings that the retrains of one call share; arguments as in `roar`."""

    def __init__(
        self,
        training: RepeatedFit,
        train: Data,
        test: Data,
        colour: Any,
        seed: int,
        folder: str | Path | None,
        progress: bool,
    ):
        self._training = training
        self._parts = [_as_arrays(training, train, "train"), _as_arrays(training, test, "test")]
        images = self._parts[0].tensors["images"]
        self._colour = as_colour(mean_colour(images) if colour is None else colour, images.shape[3])
        self._seed = as_seed("seed", seed)
        self._finished = FinishedRetrains(folder)
        self._hidden = None if progress and is_chief() else True
        self._settings: dict[str, Any] = {}
        if folder is not None:
            self._settings = {
                **training.settings(),
                "train": self._parts[0].fingerprint(),
                "test": self._parts[1].fingerprint(),
                "colour": self._colour.tolist(),
                "seed": self._seed,
            }

    def close(self) -> None:
        """Let other processes into the folder, and free the images that TensorFlow holds."""
        self._finished.close()
        arrays = vars(self).pop("_arrays", ())
        size = sum(each.tensors["images"].nbytes for each in arrays)
        del arrays
        if size > _LARGE:
            gc.collect()  # compiled pipelines refer to them in circles

    def score(
        self,
        method: Method,
        attributions: tuple[Any, Any],
        baseline: RetrainingCurve | None,
        fractions: Sequence[float],
        retrains: int,
        unoccluded: float | None,
        noise: float,
    ) -> RetrainingScore:
        """ROAR's or KAR's curve, and its baseline."""
        shares, noise = _as_fractions(fractions), as_not_negative("noise", noise)
        maps = self._as_attributions(attributions)
        removed = np.sort(np.round(1 - shares, 12)) if method == "kar" else shares
        if baseline is None:
            baseline = self.baseline(removed, retrains, unoccluded)
        else:
            self._check_baseline(baseline, removed, unoccluded)
        options = {"keep": method == "kar", "noise": noise, "seed": self._seed}

        def occlusion(part: int, fraction: float, _: int) -> np.ndarray:
            return occluded_pixels(maps[part], fraction, **options)

        settings = {"attribution": [_digest(each) for each in maps], "noise": noise}
        accuracies = self._accuracies(method, shares, retrains, occlusion, settings)
        ends = baseline.unoccluded, baseline.chance
        return RetrainingScore(RetrainingCurve(method, shares, accuracies, *ends), baseline)

    def baseline(
        self, fractions: Sequence[float], retrains: int, unoccluded: float | None
    ) -> RetrainingCurve:
        """The curve of random pixels."""
        shares = _as_fractions(fractions)

        def occlusion(part: int, fraction: float, seed: int) -> np.ndarray:
            return random_pixels(self._shape(part), fraction, np.random.SeedSequence([seed, part]))

        def none(part: int, *_: Any) -> np.ndarray:
            return np.zeros(self._shape(part), bool)

        if unoccluded is None:
            unoccluded = self._accuracies("unoccluded", np.zeros(1), retrains, none).mean()
        elif not 0 <= unoccluded <= 1:
            raise InputError(f"unoccluded must be an accuracy in [0, 1], got {unoccluded!r}")
        accuracies = self._accuracies("random", shares, retrains, occlusion)
        chance = 1 / self._parts[0].classes
        return RetrainingCurve("random", shares, accuracies, float(unoccluded), chance)

    def _accuracies(
        self,
        kind: str,
        fractions: np.ndarray,
        retrains: int,
        occlusion: _Occlusion,
        settings: dict[str, Any] | None = None,
    ) -> np.ndarray:
        """(fractions, retrains) accuracies; trains what is not finished.

        Args:
            kind: of `_KINDS`.
            fractions: (fractions,).
            retrains: number per fraction.
            occlusion: chooses the pixels.
            settings: what the results depend on besides `self._settings`.
        """
        accuracies = np.full((len(fractions), as_count("retrains", retrains, 1)), np.nan)
        missing = []
        for row, retrain in np.ndindex(accuracies.shape):
            fraction = float(fractions[row])
            seed = self._seed_of(kind, fraction, retrain)
            name = f"{kind}-{fraction:g}-{retrain}"
            own = {"fraction": fraction, "training_seed": seed, **(settings or {})}
            finished = self._finished.read(name, self._settings | own)
            if finished is not None:
                accuracies[row, retrain] = finished["accuracy"]
            else:
                missing.append((row, retrain, seed, name, own))
        bar = tqdm(missing, desc=kind, unit="retrain", leave=False, disable=self._hidden)
        data, made_for = None, None
        for row, retrain, seed, name, own in bar:
            wanted = (row, retrain if kind == "random" else 0)  # random pixels: new ones each time
            if wanted != made_for:
                data, made_for = self._occluded(occlusion, own["fraction"], seed), wanted
            result = self._retrained(*data, seed)
            self._finished.write(name, self._settings | own, result)
            accuracies[row, retrain] = result["accuracy"]
        return accuracies

    def _occluded(
        self, occlusion: _Occlusion, fraction: float, seed: int
    ) -> tuple[OccludedStream, OccludedStream]:
        """Training and test data."""
        train, test = (
            OccludedStream(arrays, occlusion(part, fraction, seed), self._colour)
            for part, arrays in enumerate(self._arrays)
        )
        return train, test

    def _retrained(self, train: Stream, test: Stream, seed: int) -> dict[str, float]:
        self._training.train(train, seed=seed, progress=False)
        return evaluate(self._training.model, test, batch_size=self._training.batch_size)

    @functools.cached_property
    def _arrays(self) -> list[Arrays]:
        return [with_rows(part.tensors, part.classes) for part in self._parts]

    def _shape(self, part: int) -> tuple[int, int, int]:
        return self._parts[part].tensors["images"].shape[:3]

    def _seed_of(self, kind: str, fraction: float, retrain: int) -> int:
        """Of a retrain: independent of which others there are."""
        entropy = [self._seed, _KINDS[kind], round(fraction * 1e6), retrain]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def _check_baseline(
        self, baseline: RetrainingCurve, removed: np.ndarray, unoccluded: float | None
    ) -> None:
        """Refuse a baseline that the curve cannot be compared with, before hours of training."""
        if not isinstance(baseline, RetrainingCurve) or baseline.method != "random":
            raise InputError("baseline must be the curve of random_baseline, or a score's baseline")
        chance = 1 / self._parts[0].classes
        if not np.isclose(baseline.chance, chance):
            raise InputError(
                f"the baseline is of {1 / baseline.chance:.0f} classes, the network has "
                f"{self._parts[0].classes}"
            )
        if unoccluded is not None and unoccluded != baseline.unoccluded:
            raise InputError(
                f"unoccluded is {unoccluded:g}, but the baseline begins at {baseline.unoccluded:g}"
            )
        baseline.at(removed)

    def _as_attributions(self, attributions: tuple[Any, Any]) -> list[np.ndarray]:
        if not isinstance(attributions, (tuple, list)) or len(attributions) != 2:
            raise InputError(
                "attributions must be a pair: of the training images and of the test images"
            )
        return [
            as_attribution(maps, self._shape(part), f"{name} images")
            for part, (maps, name) in enumerate(
                zip(attributions, ("training", "test"), strict=True)
            )
        ]


def _as_arrays(training: RepeatedFit, data: Data, name: str) -> Arrays:
    """Images and labels in memory, checked against the model.

    Raises:
        ValueError: malformed, not in memory, or not images.
    """
    arrays = as_stream(training.model, data, name)
    if not isinstance(arrays, Arrays) or len(arrays.input_shape) != 3:
        raise InputError(
            f"{name} must be images (count, height, width, channels) in memory and their labels"
        )
    return arrays


def _as_fractions(fractions: Sequence[float]) -> np.ndarray:
    """(fractions,) float64.

    Raises:
        ValueError: none, not increasing, or outside (0, 1).
    """
    values = np.array([as_fraction(fraction) for fraction in np.ravel(fractions)])
    if not len(values) or (np.diff(values) <= 0).any():
        raise InputError(f"fractions must increase, got {fractions!r}")
    return values


def _digest(array: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).hexdigest()
