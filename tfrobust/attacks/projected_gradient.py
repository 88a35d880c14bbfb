"""Projected gradient descent: the worst perturbation of a fixed radius that a search finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from tfrobust.arguments import as_count, as_pixels, as_seed
from tfrobust.attacks.search import Stop, build_search
from tfrobust.attacks.threat_model import RandomStart, SearchObjective, ThreatModel, as_epsilon
from tfrobust.attacks.verification import predictions, verified
from tfrobust.classifier import Classifier, as_images, as_labels, in_batches
from tfrobust.errors import InputError
from tfrobust.norms import norm as norm_of

__all__ = ["BoundedPerturbation", "check_restarts", "pgd", "prepare_search", "seeds_of"]


@dataclasses.dataclass(frozen=True)
class BoundedPerturbation:
    """A perturbation of each example inside a ball.

    Attributes:
        perturbation: (batch, *input) float32; of an example whose class has not changed, the last
            one of the last restart. The attacked image is x + perturbation, clipped to the value
            range.
        success: (batch,) bool: the attacked image is misclassified, or, in a targeted attack,
            classified as the target. Layers compute in float32 where this is decided.
        labels: (batch,) int32, the classes to leave, or to reach in a targeted attack.
        adversarial_label: (batch,) int32, the class of the attacked image; -1 where the model's
            outputs are not finite.
        zero_gradient: (batch,) bool: in the last restart of the example its gradient was zero, or
            not finite, at some step before its class had changed. The search stands still there:
            robustness that is measured so is the attack's failure.
        loss: (batch, steps + 1) float32, what the search maximises (a targeted cross-entropy:
            minimises) at each iterate of the last restart; (batch, 0) unless `record_loss`.
        epsilon: (batch,) float32, the radii.
        norm: p of the ball's norm.
    """

    perturbation: np.ndarray
    success: np.ndarray
    labels: np.ndarray
    adversarial_label: np.ndarray
    zero_gradient: np.ndarray
    loss: np.ndarray
    epsilon: np.ndarray
    norm: float

    @property
    def success_rate(self) -> float:
        """Share of examples for which the attack succeeds."""
        return float(np.mean(self.success))

    @property
    def distance(self) -> np.ndarray:
        """(batch,) float32, lp norm of each perturbation."""
        return norm_of(self.perturbation, self.norm).numpy()

    def to_frame(self) -> pd.DataFrame:
        """One row per example, without the perturbation's pixels."""
        return pd.DataFrame(
            {
                "label": self.labels,
                "adversarial_label": self.adversarial_label,
                "success": self.success,
                "distance": self.distance,
                "epsilon": self.epsilon,
                "norm": float(self.norm),
                "zero_gradient": self.zero_gradient,
            }
        )


def pgd(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    norm: float,
    epsilon: Any,
    step_size: float | None = None,
    steps: int = 40,
    objective: SearchObjective = "cross_entropy",
    kappa: float = 500.0,
    rival: Literal["others", "not_below_zero"] = "others",
    targeted: bool = False,
    random_start: RandomStart | None = None,
    restarts: int = 1,
    value_range: tuple[float, float] = (0.0, 1.0),
    stop: Stop = "success",
    floor: float = 0.0,
    order: Literal["project_then_clip", "clip_then_project"] = "project_then_clip",
    record_loss: bool = False,
    seed: int = 0,
    batch_size: int = 100,
) -> BoundedPerturbation:
    """Projected gradient descent (Madry et al. 2018) in an l2 or l-infinity ball.

    Args:
        model: any classifier, also one that ends in a softmax. Where its layers compute in half
            precision, the search does; success is decided with all layers in float32.
        x: (batch, *input), inside `value_range` up to float rounding, which is clipped.
        y: (batch,) classes to leave, or to reach if `targeted`; the model's own predictions where
            None.
        norm: p of the ball, 2 or infinity.
        epsilon: radius in the units of the model's input: a number, or one per example (batch,).
        step_size: length of a step in the same norm; 2.5 * epsilon / steps where None.
        steps: gradient steps.
        objective: "cross_entropy" or "carlini_wagner"; see `ThreatModel`, also for `kappa`,
            `rival`, `floor` and `order`.
        targeted: y are the classes to reach.
        random_start: None, "ball" or "image"; see `ThreatModel`.
        restarts: searches from other random starts for examples that the earlier ones failed to
            change; more than 1 needs a random start.
        value_range: smallest and largest valid pixel.
        stop: "success" keeps each example's first perturbation that changes its class; "last" takes
            all steps and keeps the last one, as the released codes of Kim 2019 and Noack 2020 do.
        record_loss: record the objective at each iterate.
        seed: of random starts, which do not depend on the batch size.
        batch_size: examples per call; bounds the memory.

    Raises:
        InputError: an argument is malformed; images outside the range; a radius larger than it.
        NotLogitsError: the model has no logits to attack.
    """
    x = as_images(model, x)
    threat = ThreatModel(
        norm=norm,
        epsilon=0.0,  # checked below, for one or several
        step_size=step_size,
        steps=steps,
        objective=objective,
        kappa=kappa,
        rival=rival,
        random_start=random_start,
        floor=floor,
        order=order,
        value_range=value_range,
    )
    radii = as_epsilon(threat, epsilon, len(x), x.shape[1:])
    restarts = check_restarts(threat, restarts)
    run = prepare_search(model, x, threat, stop=stop, targeted=targeted, record_loss=record_loss)
    x = as_pixels("x", x, threat.value_range)
    if y is None:
        if targeted:
            raise InputError("a targeted attack needs y, the classes to reach")
        y = predictions(model, x, batch_size, in_single_precision=True)
    y = as_labels(y, len(x), Classifier.of(model, x).classes, "y")

    results: tuple[np.ndarray, ...] = ()
    remaining = np.arange(len(x))
    for restart in range(restarts):
        found = in_batches(
            run,
            x[remaining],
            y[remaining],
            radii[remaining],
            seeds_of(seed, restart, remaining),
            batch_size=batch_size,
            description="PGD" if restarts == 1 else f"PGD, restart {restart + 1}/{restarts}",
        )
        if restart == 0:
            results = found
        else:
            for result, new in zip(results, found, strict=True):
                result[remaining] = new
        remaining = remaining[~found[1]]
        if not len(remaining):
            break
    perturbation, success, adversarial_label, zero_gradient, loss = results
    return BoundedPerturbation(
        perturbation=perturbation,
        success=success,
        labels=y,
        adversarial_label=adversarial_label,
        zero_gradient=zero_gradient,
        loss=loss,
        epsilon=radii,
        norm=threat.norm,
    )


def check_restarts(threat: ThreatModel, restarts: Any) -> int:
    """`restarts` as an integer.

    Raises:
        InputError: less than 1, or several from one start.
    """
    restarts = as_count("restarts", restarts, 1)
    if restarts > 1 and threat.random_start is None:
        raise InputError(
            f'{restarts} restarts from the same start are equal: set random_start="ball"'
        )
    return restarts


def prepare_search(
    model: keras.Model,
    x: np.ndarray,
    threat: ThreatModel,
    *,
    stop: Stop,
    targeted: bool = False,
    record_loss: bool = False,
) -> Callable[..., tuple[np.ndarray, ...]]:
    """A function of images, classes, radii and seeds: one restart of the search, verified.

    It returns perturbations, successes, classes of the attacked images, `zero_gradient` and losses.

    Args:
        model: any classifier.
        x: a few images.
        threat: its settings; its epsilon is not read.
        stop: "success" or "last".
        targeted: the classes are to be reached.
        record_loss: return the objective at each iterate.

    Raises:
        InputError: `stop` is unknown.
        NotLogitsError: the model has no logits to attack.
    """
    if stop not in ("success", "last"):
        raise InputError(f'stop must be "success" or "last", got {stop!r}')
    classifier = Classifier.of(model, x)
    # the radius is an argument of the graph: one graph for all radii
    key = dataclasses.replace(threat, epsilon=0.0)
    search = classifier.compiled(build_search, key, stop, bool(targeted), bool(record_loss))
    outputs = classifier.compiled_outputs(in_single_precision=True)

    def run(
        rows: tf.Tensor, classes: tf.Tensor, radii: tf.Tensor, seeds: tf.Tensor
    ) -> tuple[np.ndarray, ...]:
        changes, stalled, losses = search(rows, classes, radii, seeds)
        changes, predicted, success = verified(
            outputs, rows, rows + changes, classes, threat.value_range, targeted=targeted
        )
        return changes, success, predicted, stalled.numpy(), losses.numpy()

    return run


def seeds_of(seed: int, restart: int, rows: np.ndarray) -> np.ndarray:
    """A seed per example and restart, (len(rows), 2) int32.

    Raises:
        InputError: `seed` is no whole number, or negative.
    """
    seed = as_seed("seed", seed)
    first = np.random.SeedSequence([seed, restart]).generate_state(1)[0].view(np.int32)
    # the second number in steps of 2: a start draws from two streams
    return np.stack([np.full(len(rows), first), 2 * rows.astype(np.int32)], axis=1)
