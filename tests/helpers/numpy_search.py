"""Projected gradient ascent on a network of two layers, in NumPy and double precision."""

import numpy as np


class TwoLayers:
    """tanh, then logits; gradients by hand."""

    def __init__(self, kernel, bias, head, offset):
        self.kernel, self.bias, self.head, self.offset = kernel, bias, head, offset

    def logits(self, x):
        return np.tanh(x @ self.kernel + self.bias) @ self.head + self.offset

    def pulled_back(self, x, cotangent):
        """Gradient at x of the sum of logits * cotangent."""
        slopes = 1 - np.tanh(x @ self.kernel + self.bias) ** 2
        return (cotangent @ self.head.T * slopes) @ self.kernel.T


def cross_entropy(logits, y):
    """Of each example, and its gradient with respect to the logits."""
    z = logits - logits.max(axis=1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    rows = np.arange(len(y))
    gradient = p.copy()
    gradient[rows, y] -= 1
    return np.log(np.exp(z).sum(axis=1)) - z[rows, y], gradient


def carlini_wagner(logits, y, kappa, rival, targeted):
    """-relu(z_y - max_j z_j + kappa) of each example, with the signs of z exchanged if targeted."""
    values, gradient = np.zeros(len(y)), np.zeros_like(logits)
    for i, (z, label) in enumerate(zip(logits, y, strict=True)):
        others = [j for j in range(len(z)) if j != label]
        best = max(others, key=lambda j: z[j])
        highest, moves = z[best], True
        if rival == "not_below_zero" and z[best] < 0:
            highest, moves = 0.0, False
        lead = (z[label] - highest) * (-1 if targeted else 1)
        values[i] = -max(lead + kappa, 0.0)
        if lead + kappa > 0:
            gradient[i, label] -= 1
            if moves:
                gradient[i, best] += 1
    return values, gradient * (-1 if targeted else 1)


def projected(change, epsilon, norm):
    if norm == np.inf:
        return np.clip(change, -epsilon[:, None], epsilon[:, None])
    lengths = np.linalg.norm(change, axis=1)
    return change * np.where(lengths > epsilon, epsilon / np.maximum(lengths, 1e-300), 1)[:, None]


def search(net, x, y, epsilon, start, *, threat, targeted=False):
    """All iterates (steps + 1, count, features) and the objective at each, (count, steps + 1)."""
    low, high = threat.value_range
    length = threat.step_size or 2.5 * epsilon / threat.steps
    length = np.broadcast_to(length, epsilon.shape)[:, None]
    change, changes, losses = start, [start], []
    for step in range(threat.steps + 1):
        logits = net.logits(x + change)
        if threat.objective == "cross_entropy":
            value, cotangent = cross_entropy(logits, y)
            cotangent = -cotangent if targeted else cotangent
        else:
            value, cotangent = carlini_wagner(logits, y, threat.kappa, threat.rival, targeted)
        losses.append(value)
        if step == threat.steps:
            break
        gradient = net.pulled_back(x + change, cotangent)
        if threat.norm == np.inf:
            direction = np.sign(gradient)
        else:
            lengths = np.maximum(np.linalg.norm(gradient, axis=1), threat.floor)[:, None]
            direction = np.divide(gradient, lengths, out=gradient * 0, where=lengths > 0)
        change = change + length * direction
        for constraint in threat.order.split("_then_"):
            if constraint == "project":
                change = projected(change, epsilon, threat.norm)
            else:
                change = np.clip(x + change, low, high) - x
        changes.append(change)
    return np.array(changes), np.array(losses).T
