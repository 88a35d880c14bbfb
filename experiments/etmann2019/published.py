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


IMAGENET_LAMBDAS = tuple(float(f"{10 ** (4 + k / 2):.4g}") for k in range(7))
"""10^4, 10^4.5, ..., 10^7."""
IMAGENET_CROP = 256
IMAGENET_SHORTER_SIDE = (258, 512)
IMAGENET_BATCH = 32
"""Over two GPUs."""
IMAGENET_BATCH_PER_GPU = 16
"""N of the penalty's scale: the released code takes the batch mean of the loss on each GPU."""
IMAGENET_BN_MOMENTUM = 0.999
IMAGENET_WEIGHT_DECAY = 1e-4
IMAGENET_IMAGES = 1000
IMAGENET_PAPER = {"epochs": 35, "learning_rate": 1e-4, "momentum": 0.99}
"""As printed: divided by 10 on a plateau of the validation loss."""
IMAGENET_RELEASED = {"epochs": 20, "learning_rate": 1e-5, "momentum": 0.9, "epochs_per_decay": 15}
"""The released code's settings file."""
