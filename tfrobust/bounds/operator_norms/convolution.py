"""Proven upper bounds of a convolution's operator norm for its input size, stride and padding.

Small convolutions are written out as a matrix A, and ||A||^2 is the largest eigenvalue of A A^T.
Above 256 rows Lanczos estimates it, and a Cholesky factorization of b I - A A^T proves
||A||^2 <= b for a b slightly above the estimate. Large convolutions are submatrices of circulant
operators of a period N, or of twisted ones (x[n + N] = exp(i theta) x[n]), whose norm is the
largest over frequencies (Sedghi et al. 2019):

    ||A|| <= max_k ||K((2 pi k + theta) / N)||,    K(w) = sum_t W[t] exp(-i w t).

Computed in double precision, whose rounding `SLACK` covers, except for the powers of large matrices
in `_largest_norm`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
from threadpoolctl import threadpool_limits

__all__ = ["Convolution", "convolution_norm", "gram_norm", "largest_singular_value"]

# relative; a factorization here has an error of less than its size times 1e-16
SLACK = 1e-9
# floating-point operations of a dense matrix and its factorization, at most: about 3,100 rows
DENSE_COST = 3e10
# floating-point operations above which only one twist of the circulant operator is bounded
SPECTRAL_COST = 1e8
# above this size Gram iteration is in single precision
LARGE = 128


class Convolution(NamedTuple):
    """A two-dimensional cross-correlation without its bias."""

    kernel: np.ndarray
    """(height, width, inputs of one group, outputs of one group, groups) float64."""
    size: tuple[int, int]
    """Height and width of the input."""
    strides: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    """Zeros before and after, for height and width."""

    @property
    def output_size(self) -> tuple[int, int]:
        reach = [(k - 1) * d + 1 for k, d in zip(self.kernel.shape[:2], self.dilation, strict=True)]
        return tuple(
            (n + sum(p) - r) // s + 1
            for n, p, r, s in zip(self.size, self.padding, reach, self.strides, strict=True)
        )


def convolution_norm(convolution: Convolution) -> float:
    """An upper bound of the largest singular value, at most a few percent above it."""
    kernel = convolution.kernel
    if not kernel.any():
        return 0.0
    inputs, outputs, groups = kernel.shape[2:]
    rows = min(math.prod(convolution.size) * inputs, math.prod(convolution.output_size) * outputs)
    if groups * float(rows) ** 3 <= DENSE_COST:
        return max(_matrix_norm(convolution, group) for group in range(groups))
    # products of many small matrices: synchronising BLAS threads is a hundred times slower
    with threadpool_limits(1, "blas"):
        return max(_spectral_norm(convolution, group) for group in range(groups))


def largest_singular_value(matrix: np.ndarray) -> float:
    """An upper bound of a dense matrix's norm, tight up to rounding. Raises: LinAlgError."""
    matrix = np.asarray(matrix, np.float64)
    if min(matrix.shape) > 64:
        return gram_norm(matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix)
    return float(np.linalg.norm(matrix, 2)) * (1 + SLACK)


def gram_norm(gram: np.ndarray) -> float:
    """An upper bound of ||A||, from G = A A^T: the root of the largest eigenvalue of G."""
    gram = np.asarray(gram, np.float64)
    count = len(gram)
    scale = float(np.trace(gram))
    if scale == 0:
        return 0.0
    if count <= 256:
        return math.sqrt(max(float(np.linalg.eigvalsh(gram)[-1]), 0) + SLACK * scale / count)
    estimate = float(
        scipy.sparse.linalg.eigsh(
            gram, k=1, tol=1e-5, v0=np.random.default_rng(0).random(count), ncv=min(40, count)
        )[0][0]
    )
    for excess in (1e-4, 1e-3, 1e-2):
        bound = estimate * (1 + excess)
        # b I - G has a Cholesky factorization only if all eigenvalues of G are below b
        if scipy.linalg.lapack.dpotrf(bound * np.eye(count) - gram, overwrite_a=True)[1] == 0:
            return math.sqrt(bound) * (1 + SLACK)
    return math.sqrt(float(np.linalg.eigvalsh(gram)[-1])) * (1 + SLACK)


def _matrix_norm(convolution: Convolution, group: int) -> float:
    matrix = sparse_matrix(convolution, group)
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return gram_norm(gram.toarray())


def sparse_matrix(convolution: Convolution, group: int = 0) -> scipy.sparse.csr_matrix:
    """The sparse matrix (outputs, inputs) of one group, sum over taps (k, l) of T_k * T_l * W_kl^T.

    Here * is the Kronecker product, and T_k, T_l are those of `_tap`.
    """
    total = None
    for row, column in np.ndindex(*convolution.kernel.shape[:2]):
        positions = scipy.sparse.kron(
            _tap(convolution, 0, row), _tap(convolution, 1, column), format="csr"
        )
        weights = convolution.kernel[row, column, :, :, group].T
        term = scipy.sparse.kron(positions, weights, format="csr")
        total = term if total is None else total + term
    return total


def _tap(convolution: Convolution, axis: int, tap: int) -> scipy.sparse.csr_matrix:
    """T_t of one axis, (outputs, inputs): 1 at [i, stride i + dilation t - padding], else 0."""
    count, size = convolution.output_size[axis], convolution.size[axis]
    outputs = np.arange(count)
    reads = outputs * convolution.strides[axis] + tap * convolution.dilation[axis]
    reads = reads - convolution.padding[axis][0]
    inside = (reads >= 0) & (reads < size)
    return scipy.sparse.csr_matrix(
        (np.ones(inside.sum()), (outputs[inside], reads[inside])), shape=(count, size)
    )


def _spectral_norm(convolution: Convolution, group: int) -> float:
    """The smallest bound max_k ||K(w_k)|| over the twists theta in {0, pi} of each axis."""
    kernel = convolution.kernel[..., group]
    grids = []
    for axis in (0, 1):
        kernel, size = _with_stride_one(kernel, convolution, axis)
        grids.append(size)
    taps = kernel.shape[:2]
    if taps == (1, 1):
        return largest_singular_value(kernel[0, 0])
    twists = list(itertools.product(*[(0.0, math.pi) if count > 1 else (0.0,) for count in taps]))
    if math.prod(grids) * min(kernel.shape[2:]) ** 3 > SPECTRAL_COST:
        # the one with the smallest estimate; only its norm is then bounded
        twists = [min(twists, key=lambda twist: _lower_estimate(kernel, grids, twist))]
    return min(_over_frequencies(kernel, grids, twist) for twist in twists)


def _with_stride_one(
    kernel: np.ndarray, convolution: Convolution, axis: int
) -> tuple[np.ndarray, int]:
    """An equivalent kernel with stride and dilation 1 along an axis, and a period N for it.

    Stride s: the phases x_f[n] = x[s n + f] of the input become channels. With padding p and
    t - p = s m + f, y[i] = sum_t W[t] x[s i + t - p] = sum_(m, f) W[s m + f + p] x_f[i + m].

    Dilation d (then s = 1): d independent convolutions with the same kernel, one per remainder r of
    the output positions modulo d, with (p + (r - p) mod d - r) / d zeros in front; N is the largest
    of their periods.

    A period is long enough if positions that wrap around miss every input: with `before` zeros in
    front, N >= inputs + before and N >= outputs + taps - 1 - before.
    """
    taps = kernel.shape[axis]
    stride, dilation = convolution.strides[axis], convolution.dilation[axis]
    before = convolution.padding[axis][0]
    inputs, outputs = convolution.size[axis], convolution.output_size[axis]
    if dilation > 1:
        offsets = [
            (before + (first - before) % dilation - first) // dilation for first in range(dilation)
        ]
        inputs, outputs = -(-inputs // dilation), -(-outputs // dilation)
        return kernel, max(max(inputs + p, outputs + taps - 1 - p) for p in offsets)
    if stride > 1:
        taps_first = np.moveaxis(kernel, axis, 0)
        shift, phase = np.divmod(np.arange(taps) - before, stride)
        before = -int(shift.min())
        # (taps, phases, other taps, inputs, outputs)
        phases = np.zeros((int(shift.max()) + before + 1, stride, *taps_first.shape[1:]))
        phases[shift + before, phase] = taps_first
        taps, inputs = len(phases), -(-inputs // stride)
        phases = np.moveaxis(phases, 1, 2)  # (taps, other taps, phases, inputs, outputs)
        kernel = phases.reshape(*phases.shape[:2], -1, phases.shape[-1])
        kernel = np.moveaxis(kernel, 0, axis)
    return kernel, max(inputs + before, outputs + taps - 1 - before)


def _over_frequencies(kernel: np.ndarray, grids: list[int], twist: tuple[float, float]) -> float:
    """max_k ||K(w_k)|| over the grid of frequencies."""
    largest = 0.0
    for block in _blocks(kernel, grids, twist):
        largest = max(largest, _largest_norm(block, largest))
    return largest * (1 + SLACK)


def _lower_estimate(kernel: np.ndarray, grids: list[int], twist: tuple[float, float]) -> float:
    """An estimate of it from below: a few steps of the power method at every frequency."""
    largest = 0.0
    for block in _blocks(kernel.astype(np.float32), grids, twist):
        vectors = np.ones((len(block), block.shape[2], 1), block.dtype)
        for _ in range(8):
            images = block @ vectors
            vectors = np.conj(np.swapaxes(block, 1, 2)) @ images
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors /= np.maximum(lengths, np.float32(1e-30))
        largest = max(largest, float(np.linalg.norm(block @ vectors, axis=1).max()))
    return largest


def _blocks(
    kernel: np.ndarray, grids: list[int], twist: tuple[float, float]
) -> Iterator[np.ndarray]:
    """K(w) = sum_(t, u) W[t, u] exp(-i (w_1 t + w_2 u)) in pieces of about 100 MB.

    (frequencies, inputs, outputs) each, w = (2 pi k + theta) / N along each axis.
    """
    # K(-w) is the conjugate of K(w), of equal norm: half of the first axis is enough
    counts = (grids[0] // 2 + 1, grids[1])
    waves = [
        np.exp(-1j * np.outer((2 * math.pi * np.arange(count) + angle) / grid, np.arange(taps)))
        for count, grid, angle, taps in zip(counts, grids, twist, kernel.shape[:2], strict=True)
    ]
    if kernel.dtype == np.float32:
        waves = [wave.astype(np.complex64) for wave in waves]
    channels = kernel.shape[2:]
    half = np.tensordot(waves[0], kernel, 1)  # (first, taps, inputs, outputs)
    rows = max(1, int(1e8 // (counts[1] * math.prod(channels) * 16)))
    for start in range(0, len(half), rows):
        block = np.tensordot(half[start : start + rows], waves[1], (1, 1))
        yield np.moveaxis(block, -1, 1).reshape(-1, *channels)


def _largest_norm(matrices: np.ndarray, floor: float) -> float:
    """An upper bound of the largest norm of complex matrices A, or `floor` where none exceeds it.

    Gram iteration (Delattre et al. 2023), with G = A A^* of n rows and k doubled at every step:

        ||G^k||_F^(1/2k) n^(-1/4k) <= ||A|| <= ||G^k||_F^(1/2k).
    """
    if matrices.shape[1] > matrices.shape[2]:
        matrices = np.swapaxes(matrices, 1, 2)
    size = matrices.shape[1]
    if size <= 16:
        return float(np.linalg.norm(matrices, 2, axis=(1, 2)).max())
    slack = scale = 1.0
    if size > LARGE:
        scale = np.abs(matrices).max()
        matrices, floor = (matrices / scale).astype(np.complex64), floor / scale
        # sums of products of complex numbers: 4 roundings each, a factor sqrt(size) for the norm,
        # and half as much for each further power, 8 in total
        slack = 1 + 8 * size**1.5 * 2.0**-24
    power = matrices @ np.conj(np.swapaxes(matrices, 1, 2))
    logs = np.zeros(len(power))  # G^k = exp(logs) * power, k = exponent
    exponent = 1.0
    while True:
        norms = np.linalg.norm(power, axis=(1, 2))
        nonzero = norms > 0
        power, logs, norms = power[nonzero], logs[nonzero], norms[nonzero]
        if not len(power):
            return floor * scale
        upper = slack * np.exp((logs + np.log(norms)) / (2 * exponent))
        lower = upper / slack**2 / size ** (1 / (4 * exponent))
        worthwhile = upper > max(floor, lower.max())
        if exponent >= (128 if size > LARGE else 512) or not worthwhile.any():
            return max(floor, float(upper.max())) * scale
        power, logs, norms = power[worthwhile], logs[worthwhile], norms[worthwhile]
        power = power / norms[:, None, None]
        power, logs, exponent = power @ power, 2 * (logs + np.log(norms)), 2 * exponent
