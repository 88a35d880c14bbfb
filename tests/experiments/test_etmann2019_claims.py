"""Claims of either half on cohorts that are made to hold, to fail, or to be too small."""

import numpy as np
import pandas as pd
import pytest

from experiments.etmann2019 import claims
from experiments.etmann2019.results import ATTACK_NAMES, Member

SATURATES = "On MNIST alignment saturates: it stops growing for the most robust models"
GROWING = (
    "On ImageNet alignment keeps growing with robustness over the whole range: it does not level "
    "off"
)


def member(rho, alpha, accuracy=0.9, attacks=tuple(ATTACK_NAMES)):
    """A model with the medians rho and alpha, and images scattered about them."""
    spread = np.linspace(0.5, 1.5, 21)
    columns = {"linearized_robustness": rho * spread, "alignment": alpha * spread}
    for name in ("theorem2_binarized", "theorem2", "theorem3"):
        columns[name] = rho * spread * 1.1
    summary = {
        "classes": 10,
        "test_accuracy": accuracy,
        "median_alignment": alpha,
        "median_linearized_robustness": rho,
        **{f"median_{attack}": rho for attack in attacks},
    }
    distances = {attack: pd.DataFrame({"distance": rho * spread}) for attack in attacks}
    return Member({"lambda": 1.0}, summary, pd.DataFrame(columns), distances, np.zeros((1, 1)))


def cohort(growth, count=8, **settings):
    """Models whose median alignment is `growth` of their median robustness."""
    return [member(rho, growth(rho), **settings) for rho in np.linspace(0.5, 2, count)]


def verdicts(members, saturates):
    return {each.statement: each for each in claims.judge(members, saturates=saturates)}


def steady(rho):
    return 1 + 2 * rho


def levelling(rho):
    return 3 * (1 - np.exp(-3 * rho))


@pytest.mark.parametrize(
    ("growth", "saturates", "keeps_growing"),
    [
        (steady, "not held", "held"),
        (np.square, "not held", "held"),  # faster and faster
        (levelling, "held", "not held"),
        (lambda rho: 1 + min(rho, 1.2), "held", "not held"),
        (lambda rho: 3 - rho, "not held", "not held"),  # falls, at the same rate
        (lambda rho: (rho - 1.2) ** 2, "not held", "not held"),  # falls first
    ],
)
def test_levelling_off_is_the_opposite_of_growing_on(growth, saturates, keeps_growing):
    members = cohort(growth)
    assert verdicts(members, True)[SATURATES].verdict == saturates
    assert verdicts(members, False)[GROWING].verdict == keeps_growing


def test_the_slopes_are_told():
    members = cohort(lambda rho: 2 * rho if rho < 1.25 else 2.5 + 1.25 * (rho - 1.25))
    claim = verdicts(members, False)[GROWING]
    assert "2.00 in the less robust half of the models, 1.25 in the more robust" in claim.figure
    assert claim.figure.endswith("(held if at least half)")
    assert (claim.verdict, claim.source) == ("held", "section 5, Figure 2")
    # half of the slope is where the verdict turns
    for factor, verdict in ((0.51, "held"), (0.49, "not held")):
        kink = cohort(lambda rho: rho if rho < 1.25 else 1.25 + factor * (rho - 1.25))
        assert verdicts(kink, False)[GROWING].verdict == verdict


def test_each_half_has_its_own_claim():
    members = cohort(steady)
    on_mnist, on_imagenet = verdicts(members, True), verdicts(members, False)
    assert set(on_mnist) - set(on_imagenet) == {SATURATES}
    assert set(on_imagenet) - set(on_mnist) == {GROWING}
    assert len(on_mnist) == len(on_imagenet) == 10
    grows = "Median alignment grows with median robustness (linearized robustness)"
    assert on_mnist[grows].source == "section 5, Figure 3"
    assert on_imagenet[grows].source == "section 5, Figure 2"
    assert on_mnist[grows].verdict == on_imagenet[grows].verdict == "held"


def test_the_papers_seven_models_are_enough_on_imagenet():
    assert verdicts(cohort(steady, 7), False)[GROWING].verdict == "held"
    assert verdicts(cohort(levelling, 7), False)[GROWING].verdict == "not held"
    few = verdicts(cohort(steady, 5), False)[GROWING]
    assert (few.verdict, few.figure) == ("not tested", "only 5 usable models")
    few = verdicts(cohort(levelling, 7), True)[SATURATES]
    assert (few.verdict, few.figure) == ("not tested", "only 7 usable models")


def test_degenerate_models_are_left_out():
    # they would hide that alignment levels off
    degenerate = [member(rho, steady(rho), accuracy=0.2) for rho in np.linspace(2.1, 4, 8)]
    claim = verdicts([*cohort(levelling), *degenerate], False)[GROWING]
    assert claim.verdict == "not held"
    assert claim == verdicts(cohort(levelling), False)[GROWING]
    none = verdicts(degenerate, False)
    assert none[GROWING].verdict == "not tested"
    assert none[
        "Theorem 3, eq. (16): the right-hand side bounds linearized robustness"
    ].verdict == ("held")


def test_models_without_a_median_do_not_count():
    members = cohort(steady, 7)
    members[2].summary["median_alignment"] = float("nan")
    members[3].summary["median_linearized_robustness"] = float("nan")
    assert verdicts(members, False)[GROWING].figure == "only 5 usable models"


def test_an_attack_that_was_not_made_is_not_tested():
    members = cohort(steady, attacks=("gradient",))
    found = verdicts(members, False)
    assert claims.attacks_of(members) == ("gradient",)
    words = "Median alignment grows with median robustness ({})"
    assert found[words.format("gradient attack")].verdict == "held"
    for attack in ("l2 basic iterative", "Carlini-Wagner l2"):
        claim = found[words.format(attack)]
        assert (claim.verdict, claim.figure) == ("not tested", "only 0 usable models")
    predicts = found["Linearized robustness predicts the Carlini-Wagner distance image by image"]
    assert (predicts.verdict, predicts.figure) == ("not tested", "no usable model")


def test_an_attack_that_one_model_lacks_counts_for_the_others():
    members = cohort(steady)
    for table in (members[0].distances, members[0].summary):
        table.pop("carlini_wagner", table.pop("median_carlini_wagner", None))
    assert claims.attacks_of(members) == ("gradient", "basic_iterative")
    claim = verdicts(members, False)[
        "Median alignment grows with median robustness (Carlini-Wagner l2)"
    ]
    assert (claim.verdict, "over 7 models" in claim.figure) == ("held", True)
