"""fit(): the one training loop.

Not `keras.Model.fit`: objectives need second derivatives, a killed run is resumed and ends with
the same weights, and `model.fit` fails under MultiWorkerMirroredStrategy in Keras 3
(keras-team/keras#20585).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

from tfrobust.arguments import as_count, as_seed
from tfrobust.classifier import logits_model
from tfrobust.data import Arrays, Data, Share, Stream, as_stream
from tfrobust.distribution import average, gather_rows, is_chief
from tfrobust.errors import InputError
from tfrobust.objectives import Objective, Term
from tfrobust.training.evaluation import evaluate
from tfrobust.training.loop import Loop, NonFiniteLossError, Progress, worker_losses
from tfrobust.training.run_folder import RunFolder, run_settings
from tfrobust.training.schedules import Schedule

__all__ = ["Callback", "History", "fit"]

# columns of a record besides the terms of the objective
_COLUMNS = {
    "accuracy",
    "adversarial_accuracy",
    "epoch",
    "learning_rate",
    "loss_scale",
    "seconds",
    "skipped_steps",
}
_VALIDATION = ("validation_loss", "validation_accuracy")

Callback = Callable[[dict[str, float], keras.Model], None]


@dataclasses.dataclass(frozen=True)
class History:
    """The records of training, one per epoch."""

    records: tuple[dict[str, float], ...]

    def to_frame(self) -> pd.DataFrame:
        """One row per epoch: learning rate, each part of the objective, accuracies, seconds."""
        return pd.DataFrame(list(self.records))


def fit(
    model: keras.Model,
    data: Data,
    objective: Objective | Term,
    *,
    optimizer: keras.optimizers.Optimizer,
    epochs: int,
    batch_size: int = 100,
    schedule: Schedule | None = None,
    validation: Data | None = None,
    folder: str | Path | None = None,
    checkpoint_every: int | None = None,
    seed: int = 0,
    jit: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> History:
    """Minimise `objective` over the model's trainable weights.

    Runs under the `tf.distribute` strategy in scope, on one device, several devices or several
    workers; the model and the optimizer must be created in the same scope. `batch_size` is the
    global batch: each device takes an equal part of it, gradients are those of the mean over the
    whole batch, and the batches do not depend on the number of devices. Only batch normalisation in
    training mode and dropout depend on it: statistics are per device unless the layers are
    `synchronized`, and all devices draw the same dropout mask. Moving averages are averaged over
    devices after each epoch. Only the chief worker writes; all workers must see its folder.

    Each epoch visits the examples in an order drawn from (seed, epoch) and leaves out the last
    incomplete batch. With a `folder`, every epoch ends with a checkpoint, `last.keras`,
    `best.keras` (lowest validation loss) and TensorBoard scalars in it; `checkpoint_every` adds
    checkpoints within epochs. The same call with the same folder resumes from the newest checkpoint
    and ends with the weights and records of an uninterrupted run.

    A model whose layers compute in float16 (`tfrobust.training.computing_in`) is trained with a
    dynamic loss scale; steps whose gradients overflow are skipped and counted.

    Args:
        model: any Keras classifier; a final softmax is left out of the objective.
        data: images (count, *input) in the model's input space and labels (count,), as a pair or as
            "images" and "labels" of a dict, whose other arrays (count, ...) are in
            `ForwardPass.tensors` for the objective's terms; or a `Stream` of such dicts.
        objective: a term or a sum of terms of `tfrobust.objectives`.
        optimizer: a new Keras optimizer; its learning rate is used unless `schedule` is given.
        epochs: total passes over the data, including finished ones.
        batch_size: examples per step, over all devices and workers.
        schedule: learning rate of each epoch.
        validation: data whose loss (mean cross-entropy) and accuracy are recorded after each epoch.
        folder: for checkpoints; nothing is written where None.
        checkpoint_every: steps between checkpoints, counted over all epochs; None for one per
            epoch. Choose it so that these steps take much longer than writing a checkpoint.
        seed: of the order of examples. Weights and dropout have their own seeds.
        jit: compile gradients with XLA; faster on GPUs, not on CPUs.
        callbacks: called after each epoch, on every worker, with its record and the model. One with
            an attribute `repeatable` that is true is called again for the last finished epoch when
            training is resumed, as the run may have been killed before the call.
        progress: show a bar with the parts of the objective.

    Returns:
        `History`, including the epochs of earlier calls.

    Raises:
        ValueError: malformed data, fewer examples than a batch, a batch that the devices cannot
            share equally, `epochs`, `batch_size` or `seed` out of range, a schedule that monitors
            an unknown column, or `checkpoint_every` without a folder.
        SettingsChangedError: the folder holds training with other settings or data, of another
            architecture or precision, or more epochs; or workers do not see the same folder.
        FolderInUseError: another process, or another call in this one, is training in the folder.
        DamagedCheckpointError: the newest checkpoint cannot be read.
        NonFiniteLossError: the objective is infinite or NaN; names epoch, step and setting. The
            model is restored from the newest checkpoint, if there is one.
        WorkerLostError: another worker has terminated.
        OSError: the folder is not writable, or the disk is full.
    """
    objective = objective if isinstance(objective, Objective) else Objective((objective,))
    epochs, batch_size = as_count("epochs", epochs, 1), as_count("batch_size", batch_size, 1)
    seed = as_seed("seed", seed)
    data = as_stream(model, data, "data")
    if data.examples < batch_size:
        raise InputError(f"{data.examples} examples do not fill one batch of {batch_size}")
    if validation is not None:
        validation = as_stream(model, validation, "validation")
    _check_columns(objective, schedule, validated=validation is not None)
    checkpoint_every = _as_interval(checkpoint_every, folder)

    _check_objective(objective, data, batch_size)
    logits = logits_model(model, np.zeros((1, *data.input_shape), np.float32))
    loop = Loop(model, logits, objective, optimizer, data, batch_size, seed, jit)
    settings = run_settings(objective, optimizer, schedule, epochs, batch_size, seed, data, model)
    with RunFolder(folder, settings, model, optimizer, loop.loss_scale, epochs) as run_folder:
        records, resumed = run_folder.resume()
        if records and resumed is None:
            for callback in callbacks:
                if getattr(callback, "repeatable", False):
                    callback(records[-1], model)
        hidden = not (progress and is_chief())
        bar = tqdm(total=loop.steps, disable=hidden or None, leave=False, unit="step", delay=1)
        with bar:
            for epoch in range(len(records), epochs):
                state = resumed or Progress(epoch)
                resumed = None
                start = time.perf_counter() - state.seconds
                if schedule is not None:
                    monitored = [record[schedule.monitor] for record in records if schedule.monitor]
                    optimizer.learning_rate = schedule(epoch, epochs, monitored)
                if state.learning_rate is None:
                    state.learning_rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
                bar.reset(loop.steps)
                bar.set_description(f"epoch {epoch + 1}/{epochs}")
                _take_steps(loop, run_folder, records, state, start, bar, checkpoint_every)
                record = {"epoch": epoch + 1, "learning_rate": state.learning_rate}
                record |= loop.record(state)
                with worker_losses():
                    average(model.non_trainable_variables)
                    if validation is not None:
                        scores = evaluate(model, validation, batch_size=batch_size)
                        record |= {f"validation_{name}": score for name, score in scores.items()}
                record["seconds"] = round(time.perf_counter() - start, 3)
                records.append(record)
                run_folder.end_epoch((epoch + 1) * loop.steps, records)
                for callback in callbacks:
                    callback(record, model)
        with worker_losses():  # all workers wait until the chief has written its last files
            gather_rows(np.zeros(1))
    return History(tuple(records))


def _take_steps(
    loop: Loop,
    run_folder: RunFolder,
    records: list[dict[str, float]],
    state: Progress,
    start: float,
    bar: tqdm,
    checkpoint_every: int | None,
) -> None:
    """Take the remaining steps of an epoch, with checkpoints in between."""
    steps_before = state.epoch * loop.steps
    bar.update(state.steps)
    batches = loop.batches(state)
    while state.steps < loop.steps:
        stop = loop.steps
        if checkpoint_every is not None:
            due = (steps_before + state.steps) // checkpoint_every + 1
            stop = min(stop, due * checkpoint_every - steps_before)
        try:
            loop.advance(batches, state, stop, bar)
        except NonFiniteLossError:
            run_folder.restore_weights()
            raise
        if stop < loop.steps:
            state.seconds = time.perf_counter() - start
            with worker_losses():
                run_folder.checkpoint(steps_before + stop, records, state)


def _check_objective(objective: Objective, data: Stream, batch_size: int) -> None:
    """Refuse an objective without a value, and images that its terms cannot take.

    Checked are all images where they are in memory, else those of the first batch.
    """
    if not objective.names:
        raise InputError("the objective has nothing to minimise: add CrossEntropy()")
    checking = [
        term for term in objective.terms if type(term).check_images is not Term.check_images
    ]
    if not checking:
        return
    if isinstance(data, Arrays):
        images = data.tensors["images"]
    else:
        share = Share.of(batch_size)
        with data.errors():
            batches = data.training_batches(batch_size, share, seed=0, epoch=0)
            images = next(iter(batches))["images"].numpy()
    for term in checking:
        term.check_images(images)


def _as_interval(checkpoint_every: int | None, folder: str | Path | None) -> int | None:
    """`checkpoint_every` as an integer of at least 1, or None."""
    if checkpoint_every is None:
        return None
    interval = as_count("checkpoint_every", checkpoint_every, 1)
    if folder is None:
        raise InputError("checkpoint_every needs a folder to write checkpoints to")
    return interval


def _check_columns(objective: Objective, schedule: Schedule | None, *, validated: bool) -> None:
    """Refuse terms named like another column of records, and a schedule of an unknown column."""
    names = [term.name for term in objective.terms]
    measured = objective.measured_names
    columns = [*objective.names, *measured, *objective.accuracy_names]
    names += measured
    taken = [name for name in names if name in _COLUMNS or name.startswith("validation_")]
    if taken:
        raise InputError(f"a term cannot be named {taken[0]!r}: records have a column of that name")
    monitored = [*columns, *(_VALIDATION if validated else ())]
    if schedule is not None and schedule.monitor not in (None, *monitored):
        missing = "" if validated else ": give validation data"
        raise InputError(
            f"{type(schedule).__name__} monitors {schedule.monitor!r}, but records have only "
            f"{', '.join(monitored)}{missing}"
        )
