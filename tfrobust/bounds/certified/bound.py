"""Sound lower bounds: margins divided by Lipschitz constants, then tightened in a ball about x."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tfrobust.bounds import registry
from tfrobust.bounds.certified.ball import MARGINS, largest_ball
from tfrobust.bounds.certified.lipschitz import (
    evaluator,
    global_radius,
    margins_of,
    of_other_classes,
    rounded_up,
)
from tfrobust.bounds.certified.network import LipschitzConstants, Network
from tfrobust.bounds.graph import UnsupportedLayerError, graph_steps
from tfrobust.bounds.result import LayerKappa, RobustnessBound
from tfrobust.classifier import Classifier, in_batches
from tfrobust.errors import InputError

__all__ = ["certified"]

# numbers of classes and of nonlinear steps up to which networks are tightened by default
FEW_CLASSES, FEW_NONLINEAR = 20, 16
# numbers that tightening may hold in memory at a time
WORKING_SET = 2e8


def certified(
    model: keras.Model, x: np.ndarray, *, tighten: bool | None, batch_size: int
) -> RobustnessBound:
    """See `tfrobust.bounds.robustness`."""
    network = _network(model, x)
    constants = network.constants()
    evaluate = evaluator(model, network, constants, x, batch_size)
    logits, errors = evaluate(x, np.zeros(len(x)))
    if not np.isfinite(logits).all():
        example = int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])
        raise InputError(f"the logits of example {example} are not finite: no bound can be given")
    predicted = logits.argmax(axis=1).astype(np.int32)
    margins = margins_of(logits, predicted)
    radius, rounding, errors, proved = global_radius(
        evaluate, network, constants, x, margins, errors, predicted
    )
    kappas = tuple(
        LayerKappa(
            step.name,
            step.kind,
            operation.rule,
            _kappa(radius, max(constants.from_input[source] for source in step.inputs)),
        )
        for step, operation in zip(network.steps, network.operations, strict=True)
    )
    nonlinear = sum(not operation.linear for operation in network.operations)
    if tighten is None:
        tighten = logits.shape[1] <= FEW_CLASSES and nonlinear <= FEW_NONLINEAR
    bound = untightened = radius.astype(np.float32)
    if tighten and nonlinear:
        bound = _tightened(
            model, network, constants, x, untightened, errors, proved, predicted, batch_size
        )
    return RobustnessBound(
        bound=_rounded_down(bound),
        predicted=predicted,
        margin=of_other_classes(margins, predicted).min(axis=1).astype(np.float32),
        untightened=_rounded_down(untightened),
        layers=kappas,
        rounding=rounding.astype(np.float32),
        proved_in_float32=proved,
        rules="certified",
        tightened=bool(tighten),
    )


def _network(model: keras.Model, x: np.ndarray) -> Network:
    """The network's operations. Raises: ValueError unless it computes in single precision."""
    if (
        tf.config.list_logical_devices("GPU")
        and tf.config.experimental.tensor_float_32_execution_enabled()
    ):
        raise InputError(
            "TensorFloat-32 is on: products on this GPU have 10 bits, and certified bounds account "
            "for single precision only. Call "
            "tf.config.experimental.enable_tensor_float_32_execution(False) first."
        )
    steps = graph_steps(model, x)
    for step in steps:
        if getattr(step.layer, "quantization_mode", None):
            raise UnsupportedLayerError(
                f"layer {step.name!r} is quantized ({step.layer.quantization_mode}): it rounds "
                "its input, and no Lipschitz constant holds. Build the model without quantization."
            )
        dtype = getattr(step.layer, "compute_dtype", "float32")
        if dtype != "float32":
            raise UnsupportedLayerError(
                f"layer {step.name!r} computes in {dtype}: certified bounds account for single "
                "precision only. Build the model under the policy float32, with the same weights."
            )
    return Network(steps)


def _kappa(radius: np.ndarray, constant: float) -> np.ndarray:
    # an infinite radius times a constant of 0, of a layer whose output never changes, is NaN
    return np.where(np.isinf(radius), np.inf, radius * constant).astype(np.float32)


def _tightened(
    model: keras.Model,
    network: Network,
    constants: LipschitzConstants,
    x: np.ndarray,
    radius: np.ndarray,
    errors: np.ndarray,
    proved: np.ndarray,
    predicted: np.ndarray,
    batch_size: int,
) -> np.ndarray:
    """min over blocks of margins of the radius that `largest_ball` certifies: (batch,)."""
    classes = errors.shape[1]
    classifier = Classifier.of(model, x)
    run = classifier.compiled(largest_ball, registry.registrations(), batched_args=5)
    steps = tf.constant(rounded_up(constants.steps))
    fused = tf.constant(rounded_up(constants.fused))
    rounding = tf.constant(rounded_up(constants.rounding))
    widest = max(int(np.prod(step.output_shape)) for step in network.steps)
    rows = int(max(1, min(batch_size, WORKING_SET / (widest * 8 * min(MARGINS, classes - 1)))))
    start = np.where(np.isfinite(radius), radius, 0).astype(np.float32)
    best = np.full(len(x), np.inf, np.float32)
    for first in range(0, classes - 1, MARGINS):
        radii = in_batches(
            lambda *arrays, first=first: run(*arrays, steps, fused, rounding, tf.constant(first)),
            x,
            start,
            errors.astype(np.float32),
            proved,
            predicted,
            batch_size=rows,
            description="tightening",
        )
        best = np.minimum(best, radii)
    return np.where(np.isinf(radius), radius, np.maximum(best, start))


def _rounded_down(values: np.ndarray) -> np.ndarray:
    return np.where(np.isinf(values), values, np.nextafter(values, np.float32(0)))
