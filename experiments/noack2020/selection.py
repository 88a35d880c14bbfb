"""Which epoch's network is kept: the rule is applied by code, never by hand.

The paper wants all networks to have roughly the same validation loss. Its released code keeps the
epoch of the second half with the best *test* accuracy. Here it is the one with the best accuracy on
validation images; what the code's rule would have reported is written beside it.
"""

from __future__ import annotations

import json
import operator
from pathlib import Path
from typing import Any

import keras

from tfrobust import data, evaluate
from tfrobust.distribution import is_chief
from tfrobust.errors import StorageError
from tfrobust.files import atomic_path

__all__ = ["RECORD", "BestEpoch"]

_WEIGHTS, RECORD = "best.weights.h5", "selection.json"


class BestEpoch:
    """A callback of `fit`: keeps the best epoch's weights and record in a folder.

    Resumed training goes on from the record. With equal accuracies the earlier epoch is kept.

    Args:
        folder: of the network.
        epochs: in all; those past the half compete, the last always does.
        test: images for the accuracy that the released code's rule selects by.
    """

    repeatable = True

    def __init__(self, folder: Path, epochs: int, test: data.Dataset):
        self._folder, self._epochs, self._test = folder, epochs, test

    def __call__(self, record: dict[str, float], model: keras.Model) -> None:
        if record["epoch"] <= self._epochs / 2 and record["epoch"] != self._epochs:
            return
        known = self.record()
        if any(epoch["epoch"] == record["epoch"] for epoch in known["epochs"]):
            return
        entry = {name: record[name] for name in ("epoch", "validation_accuracy", "validation_loss")}
        entry["test_accuracy"] = evaluate(model, *self._test.arrays, batch_size=500)["accuracy"]
        best = max((e["validation_accuracy"] for e in known["epochs"]), default=-1.0)
        if not is_chief():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        if entry["validation_accuracy"] > best:
            with atomic_path(self._folder / _WEIGHTS) as path:
                model.save_weights(path)
        known["epochs"].append(entry)
        with atomic_path(self._folder / RECORD) as path:
            path.write_text(json.dumps(known, indent=2) + "\n")

    def record(self) -> dict[str, Any]:
        """{"epochs": the competing epochs so far}."""
        path = self._folder / RECORD
        return json.loads(path.read_text()) if path.exists() else {"epochs": []}

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
        """
        path = self._folder / _WEIGHTS
        if not path.exists():
            raise StorageError(f"{path} is missing: delete {self._folder} to train again")
        model.load_weights(path)
