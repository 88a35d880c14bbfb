"""Training from fresh weights again and again, with one model and one compiled step."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from tqdm import tqdm

from tfrobust.arguments import as_count, as_seed
from tfrobust.classifier import logits_model
from tfrobust.data import Data, Stream, as_stream
from tfrobust.distribution import average, is_chief
from tfrobust.errors import InputError, InputTypeError
from tfrobust.objectives import Objective, Term
from tfrobust.training.fit import History
from tfrobust.training.loop import Loop, Progress, worker_losses
from tfrobust.training.precision import LossScale

__all__ = ["RepeatedFit"]


class RepeatedFit:
    """Calls of `fit` that share a model and a compiled training step.

        repeated = RepeatedFit(build, CrossEntropy(), optimizer=make_optimizer, epochs=20)
        history = repeated.train(data, seed=3)

    trains `repeated.model` from fresh weights to the weights and records, bit for bit, of

        keras.utils.set_random_seed(3)
        model = build()
        history = fit(
            model, data, CrossEntropy(), optimizer=make_optimizer(), epochs=20, seed=3
        )

    Every run assigns the weights of a new model and the initial state of the optimizer to the same
    variables, so that only the first run traces the step. Random numbers that terms of the
    objective draw in `Term.prepare`, such as random starts of attacks, are those of `fit` with
    seed 0 in all runs.

    Args:
        build: makes the model with fresh weights, always of one architecture and built.
        objective: a term or a sum of terms of `tfrobust.objectives`.
        optimizer: makes the optimizer; called once.
        epochs: passes over the data in each run.
        batch_size: examples per step, over all devices and workers.
        jit: compile gradients with XLA.

    Attributes:
        model: the same object for all runs; copy its weights to keep them.

    Raises:
        TypeError: `build` or `optimizer` make something else.
        ValueError: the model is not built, or the objective has nothing to minimise.
    """

    def __init__(
        self,
        build: Callable[[], keras.Model],
        objective: Objective | Term,
        *,
        optimizer: Callable[[], keras.optimizers.Optimizer],
        epochs: int,
        batch_size: int = 100,
        jit: bool = False,
    ):
        self._objective = objective if isinstance(objective, Objective) else Objective((objective,))
        if not self._objective.names:
            raise InputError("the objective has nothing to minimise: add CrossEntropy()")
        self.epochs = as_count("epochs", epochs, 1)
        self.batch_size = as_count("batch_size", batch_size, 1)
        self._build, self._jit = build, jit
        self.model = self._fresh_model(0)
        self._optimizer = optimizer() if callable(optimizer) else optimizer
        if not callable(optimizer) or not isinstance(self._optimizer, keras.optimizers.Optimizer):
            raise InputTypeError(
                "optimizer must be a function that makes a Keras optimizer, such as "
                f"lambda: keras.optimizers.Adam(1e-3), got {optimizer!r}"
            )
        self._optimizer.build(self.model.trainable_variables)
        self._initial_state = [
            keras.ops.convert_to_numpy(variable) for variable in self._optimizer.variables
        ]
        self._loop: _RestartedLoop | None = None

    def train(self, data: Data, *, seed: int, progress: bool = True) -> History:
        """Train the model from fresh weights.

        Sets Keras's global random seed.

        Args:
            data: as `fit` takes it.
            seed: of the weights, dropout and the order of examples; 0 to 2^32 - 1.
            progress: show a bar with the parts of the objective.

        Returns:
            the records, one per epoch, without the seconds.

        Raises:
            ValueError: malformed data, fewer examples than a batch, a seed out of range, or `build`
                has made a model of another architecture.
            NonFiniteLossError: the objective is infinite or NaN.
            WorkerLostError: another worker has terminated.
        """
        data = as_stream(self.model, data, "data")
        if data.examples < self.batch_size:
            raise InputError(f"{data.examples} examples do not fill one batch of {self.batch_size}")
        seed = as_seed("seed", seed)
        self._restart(seed)
        if self._loop is None:
            self._loop = self._new_loop(data)
        loop, records = self._loop, []
        total = data.examples // self.batch_size * self.epochs
        hidden = None if progress and is_chief() else True
        with (
            loop.reading(data, seed),
            tqdm(total=total, disable=hidden, leave=False, unit="step", delay=1) as bar,
        ):
            for epoch in range(self.epochs):
                bar.set_description(f"epoch {epoch + 1}/{self.epochs}")
                rate = float(keras.ops.convert_to_numpy(self._optimizer.learning_rate))
                state = Progress(epoch)
                loop.advance(loop.batches(state), state, loop.steps, bar)
                with worker_losses():
                    average(self.model.non_trainable_variables)
                records.append({"epoch": epoch + 1, "learning_rate": rate, **loop.record(state)})
        return History(tuple(records))

    def settings(self) -> dict[str, Any]:
        """What a run's result depends on besides data and seed: plain data.

        The model is a digest of its architecture.
        """
        configuration = {k: v for k, v in self._optimizer.get_config().items() if k != "name"}
        settings = {
            "objective": self._objective.describe(),
            "optimizer": {"class": type(self._optimizer).__name__, **configuration},
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "model": _architecture(self.model),
        }
        return json.loads(json.dumps(settings))

    def _fresh_model(self, seed: int) -> keras.Model:
        keras.utils.set_random_seed(seed)
        model = self._build()
        if not isinstance(model, keras.Model):
            raise InputTypeError(f"build must make a keras.Model, got {type(model).__name__}")
        if not (model.built and model.trainable_variables):
            raise InputError(
                f"build makes a model without weights, {model.name}: give it an input shape, so "
                "that its weights exist"
            )
        return model

    def _restart(self, seed: int) -> None:
        """Assign fresh weights and the optimizer's initial state."""
        fresh = self._fresh_model(seed).variables
        variables = self.model.variables
        if [v.shape for v in fresh] != [v.shape for v in variables]:
            raise InputError("build has made a model of another architecture than at first")
        for variable, value in zip(variables, fresh, strict=True):
            variable.assign(value)
        for variable, value in zip(self._optimizer.variables, self._initial_state, strict=True):
            variable.assign(value)

    def _new_loop(self, data: Stream) -> _RestartedLoop:
        logits = logits_model(self.model, np.zeros((1, *data.input_shape), np.float32))
        return _RestartedLoop(
            self.model,
            logits,
            self._objective,
            self._optimizer,
            data,
            self.batch_size,
            seed=0,
            jit=self._jit,
        )


def _architecture(model: keras.Model) -> str:
    """A digest of the architecture, the same for every model that `build` makes."""
    try:
        text = model.to_json()
    except (NotImplementedError, TypeError):  # a subclassed model that Keras cannot serialize
        text = str([(type(v).__name__, v.path, v.shape) for v in model.variables])
    text = re.sub(r"_\d+", "", text)  # the numbers of automatic names
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class _RestartedLoop(Loop):
    """The steps of several calls of `fit`, one after the other."""

    @contextlib.contextmanager
    def reading(self, data: Stream, seed: int) -> Iterator[None]:
        """In the block, train on other data in another order; it is released afterwards."""
        self._data, self._seed = data, seed
        self.steps = data.examples // self._batch_size
        if self.loss_scale is not None:
            self.loss_scale = LossScale()
        try:
            yield
        finally:
            self._data = None
