"""Tables of numbers: Iris, Wine and Spambase, standardised and split (Peck 2017, section 4.3.2).

Used by `tfrobust.data.load`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tfrobust.errors import InputError, TfrobustError

__all__ = [
    "CorruptDataError",
    "DataNotFoundError",
    "StandardizedBy",
    "Table",
    "processing",
    "read",
    "standardised",
]

StandardizedBy = Literal["all", "training"]
_BY = {"all": "all rows", "training": "the training split"}
_SPAMBASE = "spambase.data"
_SPAMBASE_SHAPE = (4601, 57)
_UCI = "https://archive.ics.uci.edu/dataset/94/spambase"


class DataNotFoundError(TfrobustError, FileNotFoundError):
    """A data set is not on this machine; the message says how to get it."""


class CorruptDataError(TfrobustError, ValueError):
    """A data set is damaged or not the published one; the message says where it differs."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A data set as published, before it is split."""

    features: np.ndarray
    """(count, features) float64, in the units of the source."""
    labels: np.ndarray
    """(count,) int32."""
    classes: int
    source: str
    version: str


def read(name: str, folder: str | Path | None, *, download: bool = False) -> Table:
    """All rows of a table, in its source's order.

    Args:
        name: "iris" or "wine", bundled with scikit-learn, or "spambase".
        folder: where `spambase.data` may be.
        download: let scikit-learn fetch Spambase from OpenML where the file is missing.

    Raises:
        DataNotFoundError: Spambase is missing; says how to get it.
        CorruptDataError: Spambase of another size, or with impossible values.
    """
    if name == "spambase":
        path = None if folder is None else Path(folder) / _SPAMBASE
        if path is not None and path.is_file():
            return _spambase_file(path)
        return _spambase_openml(path, download)
    import sklearn
    from sklearn.datasets import load_iris, load_wine

    bunch = {"iris": load_iris, "wine": load_wine}[name]()
    return Table(
        features=bunch.data.astype(np.float64),
        labels=bunch.target.astype(np.int32),
        classes=len(bunch.target_names),
        source=f"scikit-learn load_{name} (UCI {name})",
        version=f"scikit-learn {sklearn.__version__}",
    )


def processing(by: StandardizedBy) -> str:
    """What `standardised` does, for provenance."""
    return (
        f"standardised by {_BY[by]}, order of default_rng(0), 70 / 20 / 10 % train / test / "
        "validation"
    )


def standardised(
    table: Table, split: str, by: StandardizedBy = "all"
) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """One split of a table, in units of standard deviations.

    In the order of `default_rng(0).permutation(count)` the first 70 % of the rows are the training
    split, the next 20 % the test split and the rest the validation split, numbers rounded to the
    nearest integer. Per feature, the mean over all rows is subtracted and the result divided by the
    standard deviation over all rows (ddof 0), as Peck 2017 standardises before the split; `by`
    "training" takes both from the training split, so that nothing of the other splits is used.

    Returns:
        features (rows, features) float32, labels (rows,) int32, and a range (-m, m) that is the
        same for every split: m is twice the largest absolute value of the standardised table, so
        that it does not constrain attacks near the data.

    Raises:
        InputError: `by` is unknown.
        CorruptDataError: a feature is constant over the rows that it is standardised by.
    """
    if by not in _BY:
        raise InputError(f'standardized_by must be "all" or "training", got {by!r}')
    count = len(table.features)
    order = np.random.default_rng(0).permutation(count)
    first, second = round(0.7 * count), round(0.7 * count) + round(0.2 * count)
    rows = {"train": order[:first], "test": order[first:second], "validation": order[second:]}
    reference = table.features if by == "all" else table.features[rows["train"]]
    # the standard deviation of a constant may be computed as a rounding error instead of 0
    constant = np.flatnonzero(np.ptp(reference, axis=0) == 0)
    if len(constant):
        raise CorruptDataError(
            f"{table.source}: feature {constant[0]} has one value only in {_BY[by]}, so that it "
            "cannot be standardised. The data are not the published ones: get them again."
        )
    mean, deviation = reference.mean(axis=0), reference.std(axis=0)
    features = ((table.features - mean) / deviation).astype(np.float32)
    bound = 2 * float(np.abs(features).max())
    return features[rows[split]], table.labels[rows[split]], (-bound, bound)


def _spambase_file(path: Path) -> Table:
    """UCI's file: rows of 57 features and a label, separated by commas, without a header."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file: an error below
            rows = np.loadtxt(path, delimiter=",", comments=None, ndmin=2, encoding="utf-8")
    except ValueError as error:  # uneven rows, not a number, not UTF-8
        raise CorruptDataError(f"{path} is damaged: {error}. {_advice_on_file(path)}") from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return _spambase(
        rows[:, :-1],
        rows[:, -1],
        location=str(path),
        advice=_advice_on_file(path),
        source=f"UCI Spambase, file {_SPAMBASE}",
        version=f"sha256 of the file {digest}",
    )


def _spambase_openml(path: Path | None, download: bool) -> Table:
    ways = (
        'Either let scikit-learn fetch it from OpenML, tfrobust.data.load("spambase", '
        f"download=True), on a machine with internet access; or put {_SPAMBASE} from {_UCI} into "
        "a folder and name that folder by TFROBUST_DATA_DIR or data_dir."
    )
    if not download:
        location = "no folder of data sets is named" if path is None else f"there is no file {path}"
        raise DataNotFoundError(f"spambase is missing: {location}. {ways}")
    from sklearn import datasets

    try:
        # the pandas parser fails for classes named by numbers (scikit-learn/pull/34902)
        bunch = datasets.fetch_openml("spambase", version=1, as_frame=False, parser="liac-arff")
    except Exception as error:  # network, cache and parser raise many kinds
        raise DataNotFoundError(
            f"spambase could not be fetched from OpenML ({type(error).__name__}: {error}). {ways}"
        ) from error
    location = "spambase from OpenML"
    advice = f"Clear scikit-learn's cache ({datasets.get_data_home()}/openml) and try again."
    try:  # classes are stored as text
        features = np.asarray(bunch.data, np.float64)
        labels = np.asarray(bunch.target).astype(np.float64)
    except (TypeError, ValueError) as error:
        raise CorruptDataError(f"{location} holds no numbers: {error}. {advice}") from error
    return _spambase(
        features, labels, location=location, advice=advice, source="OpenML spambase", version="1"
    )


def _spambase(
    features: np.ndarray, labels: np.ndarray, *, location: str, advice: str, **origin: Any
) -> Table:
    if features.shape != _SPAMBASE_SHAPE:
        raise CorruptDataError(
            f"{location}: (rows, features) are {features.shape}; Spambase has {_SPAMBASE_SHAPE}. "
            + advice
        )
    invalid = np.flatnonzero(~np.isfinite(features).all(axis=1) | ~np.isin(labels, (0, 1)))
    if len(invalid):
        raise CorruptDataError(
            f"{location}: row {invalid[0]} (of {len(invalid)} such rows) holds a value that is not "
            f"finite, or a label other than 0 and 1. {advice}"
        )
    return Table(features=features, labels=labels.astype(np.int32), classes=2, **origin)


def _advice_on_file(path: Path) -> str:
    return f"Put {_SPAMBASE} from {_UCI} in its place, or remove it and use download=True."
