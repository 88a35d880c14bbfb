"""Learning rates, evaluated at the start of each epoch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from tfrobust.errors import InputError, InputTypeError

__all__ = ["Cosine", "Plateau", "Schedule", "StepDecay"]


class Schedule:
    """A learning rate that depends on the epoch and on monitored values of earlier epochs.

    A schedule is a frozen dataclass; its fields are stored in checkpoints.
    """

    monitor: str | None = None
    """Column of the records that the rate depends on."""
    needs_epochs = False
    """Whether the rate depends on the total number of epochs."""

    def __call__(self, epoch: int, epochs: int, monitored: Sequence[float]) -> float:
        """Rate of `epoch`, counted from 0, of `epochs`, given one monitored value per epoch."""
        raise InputTypeError(f"{type(self).__name__} must define its rate")


@dataclasses.dataclass(frozen=True)
class StepDecay(Schedule):
    """rate * factor^(epoch // every): Etmann 2019 multiplies by .1 every 80 epochs."""

    rate: float
    _: dataclasses.KW_ONLY
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"every must be at least one epoch, got {self.every}")

    def __call__(self, epoch: int, epochs: int, monitored: Sequence[float]) -> float:
        return self.rate * self.factor ** (epoch // self.every)


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """rate * (1 + cos(pi * epoch / epochs)) / 2 (Loshchilov and Hutter 2017, one cycle)."""

    rate: float
    needs_epochs = True

    def __call__(self, epoch: int, epochs: int, monitored: Sequence[float]) -> float:
        return self.rate * (1 + math.cos(math.pi * epoch / epochs)) / 2


@dataclasses.dataclass(frozen=True)
class Plateau(Schedule):
    """Multiplied by `factor` whenever the monitored column has not improved for `patience` epochs.

    A column whose name ends in "accuracy" improves as it grows, any other as it falls. The rate is
    computed from the whole history, so that a resumed run has the same rate.
    """

    rate: float
    _: dataclasses.KW_ONLY
    factor: float = 0.1
    patience: int = 5
    minimum_improvement: float = 1e-4
    monitor: str = "validation_loss"

    def __call__(self, epoch: int, epochs: int, monitored: Sequence[float]) -> float:
        rate, best, waited = self.rate, math.inf, 0
        grows = self.monitor.endswith("accuracy")
        for recorded in monitored[:epoch]:
            value = -recorded if grows else recorded
            if value < best - self.minimum_improvement:
                best, waited = value, 0
                continue
            waited += 1
            if waited >= self.patience:
                rate, waited = rate * self.factor, 0
        return rate
