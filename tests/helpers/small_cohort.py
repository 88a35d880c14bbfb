"""A cohort of two classifiers of digits, and whether two runs of it hold the same."""

import numpy as np
import pytest

import reference_models
from experiments.etmann2019.results import read

ARGUMENTS = [
    *("--preset", "demo", "--lambdas", "10", "30000", "--epochs", "1", "--evaluated", "12"),
    *("--carlini-wagner-steps", "5", "--evaluation-batch", "12"),
]


def assert_same_cohort(one_folder, other_folder):
    """The same members but for rounding, which training can turn into another ReLU pattern."""
    one, two = read(one_folder), read(other_folder)
    assert [member.weight for member in two.members] == [10.0, 30_000.0]
    for first, second in zip(one.members, two.members, strict=True):
        place = f"models/lambda-{first.weight:g}/model.keras"
        weights = [
            reference_models.load(folder / place).get_weights()
            for folder in (one_folder, other_folder)
        ]
        for mine, theirs in zip(*weights, strict=True):
            np.testing.assert_allclose(theirs, mine, atol=1e-3)
        for name in ("alignment", "linearized_robustness", "margin"):
            found = second.summary[f"median_{name}"]
            assert found == pytest.approx(first.summary[f"median_{name}"], rel=0.05)
        assert second.distances.keys() == first.distances.keys()
        assert len(second.alignment) == len(first.alignment) == 12
