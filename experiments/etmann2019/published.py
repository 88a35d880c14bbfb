"""What Etmann 2019 prints, and what its released code fixes, for the MNIST half of the study."""

from __future__ import annotations

import numpy as np

MODELS = 16
SMALLEST_LAMBDA = 10.0
LARGEST_LAMBDA = 180_000.0
EPOCHS = 200
BATCH_SIZE = 100
LEARNING_RATE = 1e-3
MOMENTUM = 0.9
EPOCHS_PER_DECAY = 80
DECAY = 0.1
WEIGHT_DECAY = 1e-6
ATTACKED_IMAGES = 1000
CARLINI_WAGNER = {
    "binary_search_steps": 5,
    "steps": 1000,
    "stepsize": 5e-3,
    "initial_const": 1e-2,
}
DEGENERATE_LAMBDA_OF_THE_CODE = 1000.0
"""A comment in the released MNIST settings: "Model starts to degenerate at 1000", though the paper
quotes lambdas up to 180,000 for the same code."""


def lambdas(count: int = MODELS) -> tuple[float, ...]:
    """`count` log-spaced values over the paper's range, to three significant digits."""
    values = np.geomspace(SMALLEST_LAMBDA, LARGEST_LAMBDA, count)
    return tuple(float(f"{value:.3g}") for value in values)
