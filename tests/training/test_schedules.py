"""Learning rates by hand."""

import math

import numpy as np
import pytest

from tfrobust.training.schedules import Cosine, Plateau, StepDecay


def test_step_decay_of_the_paper():
    schedule = StepDecay(1e-3, every=80)
    rates = [schedule(epoch, 200, []) for epoch in (0, 79, 80, 159, 160, 199)]
    np.testing.assert_allclose(rates, [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


def test_cosine_falls_from_the_rate_towards_zero():
    rates = [Cosine(0.1)(epoch, 10, []) for epoch in range(10)]
    assert rates[0] == 0.1
    assert rates[5] == pytest.approx(0.05)
    assert all(np.diff(rates) < 0)
    assert rates[-1] == pytest.approx(0.05 * (1 + math.cos(0.9 * math.pi)))


def test_plateau_waits_and_divides_again():
    schedule = Plateau(1.0, factor=0.1, patience=2)
    losses = [1.0, 0.5, 0.6, 0.5, 0.4, 0.45, 0.41, 0.42, 0.43]
    rates = [schedule(epoch, 99, losses) for epoch in range(10)]
    # no improvement in epochs 2, 3 -> from 4; in 5, 6 -> from 7; in 7, 8 -> from 9
    np.testing.assert_allclose(rates, [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001])


def test_plateau_of_an_accuracy_waits_for_it_to_grow():
    schedule = Plateau(1.0, patience=2, monitor="adversarial_accuracy")
    accuracies = [0.1, 0.2, 0.3, 0.3, 0.29, 0.4]
    rates = [schedule(epoch, 99, accuracies) for epoch in range(7)]
    np.testing.assert_allclose(rates, [1, 1, 1, 1, 1, 0.1, 0.1])


def test_plateau_takes_nan_as_no_improvement():
    assert Plateau(1.0, patience=1)(2, 9, [1.0, math.nan]) == pytest.approx(0.1)


def test_step_decay_refuses_no_epochs():
    with pytest.raises(ValueError, match="at least one epoch"):
        StepDecay(0.1, every=0)
