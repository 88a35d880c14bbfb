"""Which epoch's network is kept: the rule is applied by code, never by hand.

The paper wants all networks to have roughly the same validation loss. Its released code keeps the
epoch of the second half with the best *test* accuracy. Here it is the one with the best accuracy on
validation images; what the code's rule would have reported is written beside it.
"""

from __future__ import annotations

import operator
from typing import Any

import keras

import reference_models
from tfrobust import data, evaluate
from tfrobust.distribution import is_chief
from tfrobust.errors import StorageError
from tfrobust.report import Run

__all__ = ["RECORD", "BestEpoch"]

_WEIGHTS, RECORD = "best.weights.h5", "selection.json"


class BestEpoch:
    """A callback of `fit`: keeps the best epoch's weights and record in a folder.

    Resumed training goes on from the record. With equal accuracies the earlier epoch is kept.

    Args:
        run: the run folder.
        folder: of the network, in it.
        epochs: in all; those past the half compete, the last always does.
        test: images for the accuracy that the released code's rule selects by.
    """

    repeatable = True

    def __init__(self, run: Run, folder: str, epochs: int, test: data.Dataset):
        self._run, self._epochs, self._test = run, epochs, test
        self._weights, self._record = f"{folder}/{_WEIGHTS}", f"{folder}/{RECORD}"

    def __call__(self, record: dict[str, float], model: keras.Model) -> None:
        if record["epoch"] <= self._epochs / 2 and record["epoch"] != self._epochs:
            return
        known = self.record()
        if any(epoch["epoch"] == record["epoch"] for epoch in known["epochs"]):
            return
        entry = {name: record[name] for name in ("epoch", "validation_accuracy", "validation_loss")}
        entry["test_accuracy"] = evaluate(model, *self._test.arrays, batch_size=500)["accuracy"]
        best = max((e["validation_accuracy"] for e in known["epochs"]), default=-1.0)
        if is_chief() and entry["validation_accuracy"] > best:
            reference_models.save_weights(model, self._run.path(self._weights))
        known["epochs"].append(entry)
        self._run.write_json(self._record, known)

    def record(self) -> dict[str, Any]:
        """{"epochs": the competing epochs so far}."""
        return self._run.read_json(self._record) if self._run.has(self._record) else {"epochs": []}

    def chosen(self) -> dict[str, Any]:
        """The chosen epoch, and the one of the released code's rule."""
        epochs = self.record()["epochs"]
        return {
            rule: max(epochs, key=operator.itemgetter(f"{rule}_accuracy"))
            for rule in ("validation", "test")
        }

    def restore(self, model: keras.Model) -> None:
        """Assign the chosen epoch's weights.

        Raises:
            StorageError: they are not there.
            ModelFileError: they are damaged.
        """
        path = self._run.folder / self._weights
        if not path.exists():
            raise StorageError(f"{path} is missing: delete {path.parent} to train again")
        reference_models.load_weights(model, path)
