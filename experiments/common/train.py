"""Train a classifier, or load the one that is finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras

import reference_models
from tfrobust import training
from tfrobust.distribution import is_chief
from tfrobust.objectives import Objective
from tfrobust.report import Run
from tfrobust.training import Callback, Precision, Schedule, computing_in

__all__ = ["checked_model", "load_model", "save_model", "say", "train_or_load"]

# key of a model's record: digest of the settings of its run
_SEAL = "run_sha256"


def say(text: str) -> None:
    """Print on the chief only."""
    if is_chief():
        print(text, flush=True)


def save_model(run: Run, file: str, model: keras.Model, provenance: dict[str, Any]) -> None:
    """Write a model into a run folder, with what it was made by and the settings of the run."""
    seal = {} if run.seal is None else {_SEAL: run.seal}
    reference_models.save(model, run.path(file), provenance={**provenance, **seal})


def load_model(run: Run, file: str) -> keras.Model:
    """A model of a run folder.

    Raises:
        RunFolderError: it is of other or unknown settings.
        ModelFileError: it cannot be read.
    """
    return reference_models.load(checked_model(run, file))


def checked_model(run: Run, file: str) -> Path:
    """The path of a model of a run folder, by its record one of the run's settings.

    Raises:
        RunFolderError: it is of other or unknown settings.
        ModelFileError: its record cannot be read.
    """
    path = run.folder / file
    if run.seal is not None:
        known = run.exists(f"{file}.json")
        run.check_seal(file, reference_models.provenance(path).get(_SEAL) if known else None)
    return path


def train_or_load(
    run: Run,
    folder: str,
    build: Callable[[], keras.Model],
    data: Any,
    objective: Objective,
    *,
    name: str,
    optimizer: keras.optimizers.Optimizer,
    epochs: int,
    batch_size: int,
    seed: int,
    provenance: dict[str, Any],
    validation: Any = None,
    schedule: Schedule | None = None,
    precision: Precision = "float32",
    jit: bool = False,
    callbacks: Sequence[Callback] = (),
    finish: Callable[[keras.Model], None] | None = None,
) -> keras.Model:
    """A trained classifier: loaded where it is finished, else trained from its last checkpoint.

    The model is written with its history and with what it was trained by.

    Args:
        run: the run folder.
        folder: of the classifier, in the run folder.
        build: makes the classifier with fresh weights.
        data: arrays or a stream, as `fit` takes them.
        objective: what is minimised.
        name: of the classifier, for messages.
        optimizer: a fresh one.
        epochs: passes over the data.
        batch_size: examples per step, over all devices.
        seed: of weights, dropout and the order of examples.
        provenance: more to be written beside the model: its data.
        validation: as `fit` takes it.
        schedule: of the learning rate.
        precision: of training; the classifier that is returned computes in float32.
        jit: compile training steps with XLA.
        callbacks: called after each epoch, as `fit` does.
        finish: called on the trained classifier before it is written.

    Raises:
        NonFiniteLossError: training diverged.
        ModelFileError: the finished model cannot be read.
        RunFolderError: it is of other or unknown settings.
    """
    file = f"{folder}/model.keras"
    if run.has(file):
        return load_model(run, file)
    say(f"{name}: training for {epochs} epochs")
    keras.utils.set_random_seed(seed)
    with computing_in(precision):
        model = build()
    history = training.fit(
        model,
        data,
        objective,
        optimizer=optimizer,
        epochs=epochs,
        batch_size=batch_size,
        schedule=schedule,
        validation=validation,
        folder=run.folder / folder / "training",
        seed=seed,
        jit=jit,
        callbacks=callbacks,
    )
    if finish is not None:
        finish(model)
    if precision != "float32":  # measured in full precision, whatever it was trained in
        trained, model = model, build()
        model.set_weights(trained.get_weights())
    run.write_json(f"{folder}/history.json", list(history.records))
    if is_chief():
        optimizer_settings = {k: v for k, v in optimizer.get_config().items() if k != "name"}
        save_model(
            run,
            file,
            model,
            {
                "objective": objective.describe(),
                "optimizer": {"class": type(optimizer).__name__, **optimizer_settings},
                "schedule": None if schedule is None else repr(schedule),
                "epochs": epochs,
                "batch_size": batch_size,
                "precision": precision,
                "seed": seed,
                **provenance,
            },
        )
    return model
