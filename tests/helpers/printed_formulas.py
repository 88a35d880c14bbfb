"""Theorems 5.6 and 5.9 of Peck 2017 written down as printed, component by component."""

import math

import numpy as np


def normalization_as_printed(kappa, x, layer):
    """Theorem 5.6 for a batch normalisation layer: (batch,) from its input (batch, ...)."""
    gamma, beta, mean, variance = (np.asarray(w, np.float64) for w in layer.get_weights())
    variance = variance + layer.epsilon
    return np.array(
        [
            normalization_of_one(k, row.astype(np.float64), gamma, beta, mean, variance)
            for k, row in zip(kappa, x, strict=True)
        ]
    )


def normalization_of_one(kappa, x, gamma, beta, mean, variance):
    """max_j min(|rho_1j|, |rho_2j|), of one example; `variance` with epsilon."""
    flat = x.reshape(-1, len(gamma))
    y = gamma * (flat - mean) / np.sqrt(variance) + beta
    psi = (2 * kappa * np.linalg.norm(y) + kappa**2) / flat.size
    deltas = []
    for row in flat:
        for j, value in enumerate(row):
            phi = gamma[j] / variance[j]
            chi = 2 * gamma[j] * (value - mean[j]) + 2 * beta[j] * math.sqrt(variance[j])
            root = math.sqrt(phi**2 * chi**2 + 4 * phi * gamma[j] * psi)
            first = -(root + phi * chi) / (2 * phi * gamma[j])
            second = (root - phi * chi) / (2 * phi * gamma[j])
            deltas.append(min(abs(first), abs(second)))
    return max(deltas)


def responses_as_printed(kappa, x, radius, k, alpha, beta):
    """Theorem 5.9 with Lemma 5.11: (batch,) from the layer's input (batch, ..., channels)."""
    return np.array(
        [
            responses_of_one(each, row.astype(np.float64), radius, k, alpha, beta)
            for each, row in zip(kappa, x, strict=True)
        ]
    )


def responses_of_one(kappa, x, radius, k, alpha, beta):
    """max of lambda_a over the components with delta_a < 0, of one example."""
    places = x.reshape(-1, x.shape[-1])
    values, gradients = [], []
    for place in places:
        for a in range(len(place)):
            near = range(max(0, a - radius), min(len(place) - 1, a + radius) + 1)
            base = k + alpha * sum(place[j] ** 2 for j in near)
            values.append(place[a] * base**-beta)
            gradient = [-2 * place[j] * place[a] * alpha * beta * base ** (-beta - 1) for j in near]
            gradient[near.index(a)] += base**-beta
            gradients.append(np.linalg.norm(gradient))
    largest = np.abs(x).max()
    curvature = 4 * largest * alpha * beta * (
        largest**2 * alpha * (beta + 1) * k ** (-beta - 2) + k ** (-beta - 1)
    ) + 2 * largest * alpha * beta * k ** (-beta - 1)
    needed = (np.linalg.norm(values) + kappa) / math.sqrt(len(values))
    found = [
        (math.sqrt(gradient**2 - 2 * curvature * delta) - gradient) / curvature
        for delta, gradient in zip(np.abs(values) - needed, gradients, strict=True)
        if delta < 0
    ]
    return max(found)
