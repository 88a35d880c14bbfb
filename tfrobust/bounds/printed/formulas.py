"""The formulas of Peck 2017 as printed, from the logits back to the input.

kappa is the l2 norm that a change of a layer's output needs; each rule turns it into that of the
layer's input. The printed rules are not sound: docs/errata.md says why, and
tests/bounds/test_errata.py has a counterexample to each rule that is false.

Where the thesis divides by zero, the limit is taken, and the docstring says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# where the second derivative of tanh is largest, by Table 4.1
_U = math.log(2 + math.sqrt(3)) / 2

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

# Table 4.1: bounds of the first and second derivatives as printed. Of tanh the second is half of
# the true one, 4 / (3 sqrt 3). Of ReLU the table prints 0, and the text behind Algorithm 4.1 sets
# it to 1, the best of three ways to keep M from becoming 0. "linear" is not in the table.
DERIVATIVES = {
    "linear": (1.0, 0.0),
    "sigmoid": (0.25, (5 - 3 * math.sqrt(3)) / (30 * math.sqrt(3) - 54)),
    "tanh": (1.0, math.sinh(_U) / math.cosh(_U) ** 3),
    "softplus": (1.0, 0.25),
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
    """Algorithm 4.1: M, a bound of all second derivatives of the hidden layers.

    M_i = B_i N_{i-1}^2 s^2 + A_i M_{i-1} s and N_i = A_i N_{i-1} s from layer to layer, M_0 = 0 and
    N_0 = 1; s is the largest sum of a row of |V_i|, A_i and B_i are Table 4.1's bounds.

    Args:
        weights: of each hidden layer, (inputs, outputs).
        activations: their names in `DERIVATIVES`.
    """
    slope, curvature = 1.0, 0.0  # N, M
    for kernel, name in zip(weights, activations, strict=True):
        first, second = DERIVATIVES[name]
        row = float(np.abs(kernel).sum(axis=0).max())
        curvature = second * (row * slope) ** 2 + first * row * curvature
        slope = first * row * slope
    return curvature


def mlp(kappa: np.ndarray, jacobian: np.ndarray, curvature: float, units: int) -> np.ndarray:
    """Theorem 4.2: (sqrt(||J||^2 + 2 M sqrt(n) kappa) - ||J||) / (M sqrt(n)).

    kappa / ||J|| where M is 0, which the thesis excludes.

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
    """Theorem 5.3: kappa / t, or kappa / (t q^(2/p)) for lp pooling; ignores the channels.

    Args:
        kappa: (batch,).
        outputs: t, of t x t outputs.
        window: q, of q x q windows.
        kind: "max", "average", or p of lp pooling.
    """
    if kind in ("max", "average"):
        return kappa / outputs
    return kappa / (outputs * window ** (2 / float(kind)))


def batch_normalization(kappa: np.ndarray, output: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Theorem 5.6: max_j delta_j, delta_j = (sqrt(y_j^2 + psi) - |y_j|) / |s_j|.

    y is the output, s_j = gamma_j / sqrt(Var_j + epsilon) and psi = (2 kappa ||y|| + kappa^2) / d,
    d the number of components: this is min(|rho_1j|, |rho_2j|) of the thesis, whose phi_j gamma_j
    is s_j^2 and phi_j chi_j is 2 y_j s_j. A component with gamma_j = 0, for which the thesis has
    0 / 0, counts as its text says: delta_j is 0.

    Args:
        kappa: (batch,).
        output: y, (batch, ..., channels).
        scale: s, (channels,).
    """
    axes, column = tuple(range(1, output.ndim)), (-1,) + (1,) * (output.ndim - 1)
    length = np.sqrt(np.sum(np.square(output), axis=axes))
    finite = np.isfinite(kappa)
    needed = np.where(finite, kappa, 0.0)
    psi = ((2 * needed * length + needed**2) / np.prod(output.shape[1:])).reshape(column)
    # = (sqrt(y^2 + psi) - |y|), without cancellation
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.where(psi > 0, psi / (np.sqrt(output**2 + psi) + np.abs(output)), 0.0)
        delta = np.where(scale != 0, change / np.abs(scale), 0.0)
    return np.where(finite, delta.max(axis=axes), np.inf)


def response_normalization(
    kappa: np.ndarray,
    x: np.ndarray,
    *,
    depth_radius: int,
    bias: float,
    alpha: float,
    beta: float,
) -> np.ndarray:
    """Theorem 5.9 with Lemma 5.11's M: max of lambda_a over the components with delta_a < 0.

    lambda_a = (sqrt(||g_a||^2 - 2 M delta_a) - ||g_a||) / M, g_a the gradient of component a and
    delta_a = |y_a| - (||y|| + kappa) / sqrt(d), d the number of components, and
    M = 4 m alpha beta (m^2 alpha (beta + 1) k^(-beta-2) + k^(-beta-1))
    + 2 m alpha beta k^(-beta-1), m = max |x|, the same for all components. 0 where no delta_a is
    negative, which Lemma 5.7 excludes for kappa > 0; -delta_a / ||g_a|| where M is 0.

    Args:
        kappa: (batch,).
        x: the layer's input, (batch, ..., channels).
        depth_radius: (n - 1) / 2 for windows of n channels.
        bias: k.
        alpha: factor of the sum of squares.
        beta: exponent.
    """
    axes, column = tuple(range(1, x.ndim)), (-1,) + (1,) * (x.ndim - 1)
    channel = np.arange(x.shape[-1])
    window = np.abs(channel[:, None] - channel) <= depth_radius
    squares = np.square(x) @ window.astype(np.float64)
    base = bias + alpha * squares
    y = x * base**-beta
    finite = np.isfinite(kappa)
    length = np.sqrt(np.sum(np.square(y), axis=axes)) + np.where(finite, kappa, 0.0)
    delta = np.abs(y) - (length / math.sqrt(np.prod(x.shape[1:]))).reshape(column)
    # ||g_a||^2 = B^(-2 beta) (1 - 4 x_a^2 alpha beta / B + 4 x_a^2 (alpha beta)^2 S / B^2)
    product = alpha * beta
    inner = 1 - 4 * x**2 * product / base + 4 * x**2 * product**2 * squares / base**2
    gradient = base**-beta * np.sqrt(np.maximum(inner, 0.0))
    largest = np.abs(x).max(axis=axes).reshape(column)
    curvature = 4 * largest**2 * alpha * (beta + 1) * bias ** (-beta - 2) + 6 * bias ** (-beta - 1)
    curvature = largest * product * curvature
    missing = np.maximum(-delta, 0.0)
    root = np.sqrt(gradient**2 + 2 * curvature * missing)
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = np.where(missing > 0, 2 * missing / (root + gradient), 0.0)
    return np.where(finite, rows.max(axis=axes), np.inf)
