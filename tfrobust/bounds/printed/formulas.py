"""The formulas of Peck 2017 as printed, from the logits back to the input.

kappa is the l2 norm that a change of a layer's output needs; each rule turns it into that of the
layer's input. The printed rules are not sound: tests/bounds/test_errata.py has counterexamples to
four of them.

The thesis's text was not available for all of them. Theorems 3.6, 4.2, 5.1, 5.3 and Table 4.1 agree
with all of its published numbers; the interpretations of Algorithm 4.1 and of Theorems 5.6 and 5.9
are in the docstrings of their functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = [
    "DERIVATIVES",
    "batch_normalization",
    "convolution",
    "hessian_bound",
    "last_layer",
    "mlp",
    "pooling",
    "response_normalization",
]

# Table 4.1: the largest first and second derivatives as printed. The true second derivative of
# tanh reaches .770; ReLU has none, and the thesis sets it to 1.
DERIVATIVES = {
    "linear": (1.0, 0.0),
    "sigmoid": (0.25, 0.0962),
    "tanh": (1.0, 0.385),
    "relu": (1.0, 1.0),
}


def last_layer(hidden: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Theorem 3.6: the distance of h to the nearest boundary of a linear or softmax classifier.

    min_j |<w_c - w_j, h> + b_c - b_j| / ||w_c - w_j||, c the predicted class.

    Args:
        hidden: (batch, features).
        weights: (features, classes).
        bias: (classes,).

    Returns:
        (batch,); infinite where no other class can be reached.
    """
    logits = hidden @ weights + bias
    predicted = logits.argmax(axis=1)
    distances = np.linalg.norm(weights.T[:, None] - weights.T[None], axis=2)[predicted]
    margins = np.abs(logits.max(axis=1, keepdims=True) - logits)
    with np.errstate(divide="ignore", invalid="ignore"):
        kappa = np.where(distances > 0, margins / distances, np.inf)
    kappa[np.arange(len(kappa)), predicted] = np.inf
    return kappa.min(axis=1)


def hessian_bound(weights: Sequence[np.ndarray], activations: Sequence[str]) -> float:
    """Algorithm 4.1: M, from the layers' largest row sums and Table 4.1's derivatives.

    Interpreted as M <- s2 (r D)^2 + s1 r M and D <- s1 r D from layer to layer, starting at M = 0
    and D = 1, with r the largest row sum of |W|, s1 and s2 the largest derivatives. This agrees
    with the published numbers (one tanh unit, one ReLU unit, and 1.5e-5 for a trained LeNet-5).

    Args:
        weights: of each hidden layer, (inputs, outputs).
        activations: their names in `DERIVATIVES`.
    """
    slope, curvature = 1.0, 0.0
    for kernel, name in zip(weights, activations, strict=True):
        first, second = DERIVATIVES[name]
        row = float(np.abs(kernel).sum(axis=0).max())
        curvature = second * (row * slope) ** 2 + first * row * curvature
        slope = first * row * slope
    return curvature


def mlp(kappa: np.ndarray, jacobian: np.ndarray, curvature: float, units: int) -> np.ndarray:
    """Theorem 4.2: (sqrt(||J||^2 + 2 M sqrt(n) kappa) - ||J||) / (M sqrt(n)).

    Args:
        kappa: (batch,).
        jacobian: (batch,), spectral norms of the hidden layers' Jacobian at x.
        curvature: M.
        units: n, of the last hidden layer.
    """
    scale = curvature * math.sqrt(units)
    # = 2 kappa / (||J|| + sqrt(||J||^2 + 2 M sqrt(n) kappa)), without cancellation and for M = 0
    root = np.sqrt(jacobian**2 + 2 * scale * kappa)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(kappa > 0, 2 * kappa / (jacobian + root), 0.0)


def convolution(kappa: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Theorem 5.1: kappa / ||W||_F. False (Lemma A.4): the operator norm can exceed ||W||_F."""
    length = float(np.linalg.norm(kernel))
    return kappa / length if length else np.full_like(kappa, np.inf)


def pooling(kappa: np.ndarray, outputs: float, window: float, kind: float | str) -> np.ndarray:
    """Theorem 5.3, eq. (5.4): t x t outputs of q x q windows; ignores the number of channels.

    Args:
        kappa: (batch,).
        outputs: t.
        window: q.
        kind: "max": kappa / t; "average": q kappa / t; p of lp pooling: kappa / t, and for p < 2
            kappa / (t q^(2/p - 1)).
    """
    if kind == "average":
        return window * kappa / outputs
    if kind == "max" or float(kind) >= 2:
        return kappa / outputs
    return kappa / (outputs * window ** (2 / float(kind) - 1))


def batch_normalization(kappa: np.ndarray, output: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Theorem 5.6, on the false premise that the output's *norm* has to grow by kappa.

    Interpreted as: the output grows to (1 + kappa / ||y||) y, so that the input changes by
    kappa ||y / scale|| / ||y||. This agrees with the only published number (7.07).

    Args:
        kappa: (batch,).
        output: y, (batch, *output).
        scale: gamma / sqrt(variance + epsilon), (channels,).
    """
    length = np.sqrt(np.sum(np.square(output), axis=tuple(range(1, output.ndim))))
    with np.errstate(divide="ignore", invalid="ignore"):
        stretched = np.sqrt(np.sum(np.square(output / scale), axis=tuple(range(1, output.ndim))))
        return np.where(length > 0, kappa * stretched / length, kappa / np.abs(scale).max())


def response_normalization(
    kappa: np.ndarray, x: np.ndarray, output: np.ndarray, bias: float, beta: float
) -> np.ndarray:
    """Theorem 5.9 on the same premise, with Lemma 5.11: ||LRN(x)|| <= ||x|| / k^beta.

    Interpreted as: ||x + r|| >= k^beta (||y|| + kappa), hence ||r|| >= k^beta (||y|| + kappa) -
    ||x||, and 0 where that is negative. There is no published number to compare with.

    Args:
        kappa: (batch,).
        x, output: the layer's input and output, (batch, ...).
    """
    axes = tuple(range(1, x.ndim))
    input_norm = np.sqrt(np.sum(np.square(x), axis=axes))
    output_norm = np.sqrt(np.sum(np.square(output), axis=axes))
    return np.maximum(bias**beta * (output_norm + kappa) - input_norm, 0.0)
