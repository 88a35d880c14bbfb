"""The strength of projected gradient descent, beside attacks that this library did not write.

    python -m benchmarks.robustness --data mnist

Trains a classifier plainly and one adversarially. The same attack, from the same start, by Foolbox;
Foolbox's attacks on the adversarially trained classifier; how much the floors of released codes
weaken an attack, and what searching in bfloat16 changes. Exits with status 1 if a check fails.
"""

from __future__ import annotations

import math

import foolbox
import keras
import numpy as np
import tensorflow as tf
import tyro

from benchmarks.attacks import (
    BATCH,
    EPSILON,
    STEPS,
    Check,
    Settings,
    finish,
    foolbox_model,
    foolbox_pgd,
    in_bfloat16,
    prepared,
    trained,
)
from tfrobust import ThreatModel, data, evaluate, minimal, pgd, robust_accuracy
from tfrobust.commands import run


def agreement(model: keras.Model, test: data.Dataset) -> list[Check]:
    """Success of the same attack by both libraries: same start, last iterate."""
    checks = []
    x, y = test.arrays
    for norm, scale in ((2, 1.0), (2, 0.5), (math.inf, 1.0), (math.inf, 0.5)):
        epsilon = EPSILON[norm] * scale
        ours = pgd(model, x, y, norm=norm, epsilon=epsilon, steps=STEPS, stop="last")
        attack = type(foolbox_pgd(norm, STEPS))(
            abs_stepsize=2.5 * epsilon / STEPS, steps=STEPS, random_start=False
        )
        _, _, theirs = attack(
            foolbox_model(model), tf.constant(x), tf.constant(y, tf.int64), epsilons=epsilon
        )
        share = float(np.mean(theirs.numpy()))
        name = f"success, {'l2' if norm == 2 else 'linf'} {epsilon:g}: ours, Foolbox"
        figure = f"{ours.success_rate:.4f}, {share:.4f}"
        checks.append(Check(name, figure, abs(ours.success_rate - share) <= 0.005))
    return checks


def strength(robust: keras.Model, plain: keras.Model, test: data.Dataset) -> list[Check]:
    """What an adversarially trained classifier withstands."""
    x, y = test.arrays
    clean = evaluate(robust, x, y)["accuracy"]
    checks = []
    accuracies = {}
    for steps in (5, 10, 20, STEPS, 100):
        threat = ThreatModel(norm=2, epsilon=EPSILON[2], steps=steps, step_size=0.2)
        accuracies[steps] = robust_accuracy(robust, (x, y), threat)[0].worst_case
    values = list(accuracies.values())
    figure = f"clean {clean:.3f}; " + ", ".join(f"{k} {v:.3f}" for k, v in accuracies.items())
    checks.append(Check("more steps are never weaker", figure, values == sorted(values)[::-1]))

    few = slice(0, min(len(x), 200))
    ours = accuracies[STEPS]
    for name in ("deepfool", "carlini_wagner"):
        settings = {"binary_search_steps": 5, "steps": 200} if name == "carlini_wagner" else {}
        found = minimal(robust, x[few], name, labels=y[few], **settings)
        share = float(np.mean(found.distance > EPSILON[2]))
        checks.append(
            Check(f"Foolbox's {name} leaves", f"{share:.3f} (PGD {ours:.3f})", share > ours - 0.05)
        )
    theirs = foolbox.attacks.L2PGD(rel_stepsize=0.02, steps=200)
    _, _, success = theirs(
        foolbox_model(robust),
        tf.constant(x[few]),
        tf.constant(y[few], tf.int64),
        epsilons=EPSILON[2],
    )
    share = 1 - float(np.mean(success.numpy()))
    checks.append(
        Check("Foolbox's PGD-200 leaves", f"{share:.3f} (PGD {ours:.3f})", share > ours - 0.05)
    )

    transferred = pgd(plain, x, y, norm=2, epsilon=EPSILON[2], steps=STEPS, stop="last")
    black = evaluate(robust, np.clip(x + transferred.perturbation, 0, 1), y)["accuracy"]
    checks.append(
        Check(
            "black-box is no stronger", f"leaves {black:.3f}, white-box {ours:.3f}", black >= ours
        )
    )
    found = pgd(
        robust, x, y, norm=2, epsilon=EPSILON[2], steps=STEPS, stop="last", record_loss=True
    )
    loss = found.loss.mean(axis=0)
    rising = bool((np.diff(loss[: STEPS // 2]) > -1e-3).all())
    shown = " ".join(f"{loss[k]:.3f}" for k in (0, 1, 2, 5, 10, 20, 40))
    checks.append(Check("mean loss along the attack rises (0 1 2 5 10 20 40)", shown, rising))
    return checks


def floors(plain: keras.Model, half: keras.Model, test: data.Dataset) -> list[Check]:
    """Accuracy under attacks that divide by a floor, on the plainly trained classifier."""
    x, y = test.arrays
    checks = []
    for scale in (0.25, 0.5, 1.0):
        parts = []
        for floor in (0.0, 1e-8, 1e-6 * BATCH):
            threat = ThreatModel(norm=2, epsilon=scale * EPSILON[2], steps=STEPS, floor=floor)
            result = robust_accuracy(plain, (x, y), threat, stop="last")[0]
            parts.append(f"{floor:g}: {result.worst_case:.3f} (zero {result.zero_gradient.sum()})")
        name = f"robust accuracy, l2 {scale * EPSILON[2]:g}, by floor"
        checks.append(Check(name, ", ".join(parts), held=True))
    threat = ThreatModel(norm=2, epsilon=0.5 * EPSILON[2], steps=STEPS)
    full, low = (robust_accuracy(m, (x, y), threat)[0].worst_case for m in (plain, half))
    checks.append(
        Check(
            "robust accuracy, float32 and bfloat16",
            f"{full:.3f}, {low:.3f}",
            abs(full - low) <= 0.005,
        )
    )
    return checks


def main(arguments: list[str] | None = None) -> None:
    """Print every figure.

    Args:
        arguments: the command line; sys.argv where None.

    Raises:
        SystemExit: status 1 where a check fails.
        DataNotFoundError: MNIST is not prepared.
    """
    settings = tyro.cli(Settings, prog="benchmarks.robustness", args=arguments)
    train, test = prepared(settings)
    plain = trained(None, train)
    threat = ThreatModel(norm=2, epsilon=EPSILON[2], steps=10, random_start="ball")
    robust = trained(threat, train)
    checks = [
        *agreement(plain, test),
        *strength(robust, plain, test),
        *floors(plain, in_bfloat16(plain), test),
    ]
    print()
    finish([], checks)


if __name__ == "__main__":
    run(main)
