"""What the records beside classifiers say, and the data that they name."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np

from tfrobust import data, saliency
from tfrobust.errors import InputError

__all__ = ["NAMES", "PHI", "Beginnings", "Pixels", "Source"]

# data sets that are read into memory by their name
NAMES = ("cifar10", "digits", "fashion_mnist", "iris", "kim_toy", "mnist", "spambase", "wine")
# values of a target map within mean +- PHI deviations are set to zero (Noack 2020, section 3.1)
PHI = 1.0
_NUMBER = r"(-?\d+(?:\.\d+)?(?:e[-+]?\d+)?)"
_RANGE = rf"\({_NUMBER}, {_NUMBER}\)"
_PROCESSING = re.compile(rf"(.*?)(?:; rescaled from {_RANGE} to {_RANGE})?")
_KIM_TOY = re.compile(r"seed (\d+), (\d+) points per class")


@dataclasses.dataclass(frozen=True)
class Source:
    """What a record says of a classifier's training data: fields of `data.Provenance`."""

    name: str
    split: str
    version: str
    processing: str
    examples: int
    sha256: str

    @classmethod
    def of(cls, record: Any) -> Source | None:
        """Of the plain data beside a model; None where a field is missing."""
        known = record.get("data") if isinstance(record, dict) else None
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(known, dict) or not known.keys() >= set(names):
            return None
        return cls(**{name: known[name] for name in names})

    def load(self, split: str, data_dir: Path | None) -> data.Dataset | None:
        """A whole split as `data.load` gives it; None for a version of kim_toy that is unknown."""
        if self.name != "kim_toy":
            return data.load(self.name, split, data_dir=data_dir)
        # points of another seed are mapped to [-1, 1] differently
        match = _KIM_TOY.fullmatch(self.version)
        return match and data.kim_toy(split, seed=int(match[1]), count=int(match[2]))


@dataclasses.dataclass(frozen=True)
class Pixels:
    """How the pixels that a classifier takes were made."""

    processing: str
    """Before `Dataset.rescaled`."""
    before: tuple[float, float] | None
    """The range that was rescaled; None where none was."""
    after: tuple[float, float] | None

    @classmethod
    def of(cls, processing: str, model: str) -> Pixels:
        """Read the text of a record.

        Args:
            processing: `Provenance.processing`.
            model: its name, for the message.

        Raises:
            InputError: the text speaks of a rescaling that cannot be read.
        """
        match = _PROCESSING.fullmatch(processing)
        if match is None or "rescaled" in match[1]:
            raise InputError(
                f"the record beside {model} says of its pixels {processing!r}, of which the "
                "rescaling cannot be read: one '; rescaled from (a, b) to (c, d)' can stand at "
                "the end"
            )
        base, *numbers = match.groups()
        if numbers[0] is None:
            return cls(base, None, None)
        old_low, old_high, low, high = map(float, numbers)
        return cls(base, (old_low, old_high), (low, high))

    def of_set(self, given: data.Dataset) -> data.Dataset | str:
        """The examples in the range that the classifier takes, or why there are none.

        Args:
            given: as `data.load` gives them.
        """
        known = given.provenance
        if self.processing != known.processing:
            return (
                f"its training data were {self.processing!r}; {known.name} is now "
                f"{known.processing!r}"
            )
        if self.after is None:
            return given
        if self.before != given.value_range:
            return f"its pixels were rescaled from {self.before}, not {given.value_range}"
        return given.rescaled(*self.after)


class Beginnings:
    """The first examples of test and training sets; whole sets are not kept.

    Args:
        data_dir: folder of prepared data sets.
        count: of examples, where there are as many.
    """

    def __init__(self, data_dir: Path | None, count: int):
        self._data_dir = data_dir
        self._count = count
        self.training = functools.cache(self._training)
        self.targets = functools.cache(self._targets)
        self._test_of = functools.cache(self._load_test)

    def test(self, source: Source) -> data.Dataset | None:
        """Test examples as `data.load` gives them; None for an unknown version of kim_toy.

        Raises:
            DataNotFoundError: the data set is not on this machine.
        """
        # of the same data whatever the classifier was trained on
        return self._test_of(dataclasses.replace(source, split="test", examples=0, sha256=""))

    def _load_test(self, source: Source) -> data.Dataset | None:
        test = source.load("test", self._data_dir)
        return None if test is None else test.take(min(self._count, len(test)))

    def _whole(self, source: Source) -> tuple[data.Dataset, data.Dataset] | None:
        """The training set as loaded and as trained on; None where it is not the record's."""
        splits = source.split.split(" + ")
        if not set(splits) <= {"train", "validation"}:
            return None
        parts = [source.load(split, self._data_dir) for split in splits]
        whole = data.joined(parts) if len(parts) > 1 else parts[0]
        if whole is None or not 1 <= source.examples <= len(whole):
            return None
        if source.examples < len(whole):
            whole = whole.take(source.examples)
        trained = Pixels.of(source.processing, source.name).of_set(whole)
        if isinstance(trained, str) or trained.provenance.sha256 != source.sha256:
            return None
        return whole, trained

    def _training(self, source: Source) -> tuple[data.Dataset, data.Dataset] | None:
        """The first training examples, as loaded and as trained on; None as above."""
        whole = self._whole(source)
        count = min(self._count, source.examples)
        return whole and (whole[0].take(count), whole[1].take(count))

    def _targets(self, folder: Path, source: Source) -> np.ndarray | str:
        """The first target maps of a teacher, thresholded, or why there are none.

        Args:
            folder: of the maps.
            source: of the teacher's training data.

        Raises:
            InputError: the maps are of other images than the teacher was trained on.
        """
        whole = self._whole(source)
        if whole is None:
            return f"the training images of the maps in {folder} are not at hand"
        try:
            stored = saliency.TargetMaps.open(folder)
        except RuntimeError as error:  # damaged, or not finished
            return str(error)
        maps = stored.checked(*whole[1].arrays)
        return saliency.threshold(maps[: self._count], PHI)
