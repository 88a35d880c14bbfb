"""Claims of Noack 2020 on made-up results, and on the paper's own tables."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.noack2020 import claims
from experiments.noack2020.claims import Comparison
from experiments.noack2020.published import TABLE1, TABLE2, TEXT

RNG = np.random.default_rng(0)


def verdicts(found):
    return {claim.statement: claim.verdict for claim in found}


def results(table, seeds=3, noise=0.05):
    """Networks and attacks with a table's cells as means over seeds."""
    networks, attacks = [], []
    for row, cells in table.items():
        norm = 1 + len(row)
        for seed in range(seeds):
            shift = noise * (seed - 1)
            place = {"row": row, "seed": seed}
            networks.append(
                {
                    **place,
                    "accuracy": (cells["standard"] + shift) / 100,
                    "label": 2 * norm + shift,
                    "others": norm + shift,
                    "whole": (9 if row == "standard" else 3) * norm + shift,
                }
            )
            attacks += [
                {**place, "attack": name, "mean": (value + shift) / 100}
                for name, value in cells.items()
                if name != "standard"
            ]
    return pd.DataFrame(networks), pd.DataFrame(attacks)


def test_a_comparison_is_the_pooled_t_test():
    a, b = RNG.normal(1, 1, 5), RNG.normal(0, 1, 4)
    found = Comparison("x", a, b)
    expected = stats.ttest_ind(a, b, alternative="greater")
    assert found.difference / found.error == pytest.approx(expected.statistic)
    assert found.verdict is (True if expected.pvalue < 0.05 else None)
    assert Comparison("x", [5, 5.1, 5.2], [1.0]).verdict is True  # one value: the other's spread
    assert Comparison("x", [1.0], [5, 5.1, 5.2]).verdict is False
    assert Comparison("x", [1.0], [5.0]).verdict is None
    assert Comparison("x", [1.0, 1.0], [1.0]).verdict is None
    assert Comparison("x", [2.0, 2.0], [1.0]).verdict is True
    assert math.isnan(Comparison("x", [], [1.0]).difference)


@pytest.mark.parametrize(
    ("pairs", "most", "verdict"),
    [
        ("++", False, "held"),
        ("+0", False, "not decided"),
        ("+-", False, "not held"),
        ("++-", True, "held"),
        ("+0-0", True, "not decided"),
        ("+--", True, "not held"),
        ("", False, "not tested"),
    ],
)
def test_claims_of_several_comparisons(pairs, most, verdict):
    samples = {"+": ([5, 5.1], [1, 1.1]), "-": ([1, 1.1], [5, 5.1]), "0": ([1, 9], [5, 5.1])}
    comparisons = [Comparison(sign, *samples[sign]) for sign in pairs]
    assert claims.joined("s", "t", comparisons, most=most).verdict == verdict


def test_the_papers_own_table_1():
    found = verdicts(claims.table(*results(TABLE1), "Table 1"))
    assert found["Every defence lowers standard accuracy"] == "held"
    assert found["IR (R, SmG) beats JR on every attack"] == "held"
    overtakes = "IR (R, SmG) overtakes its teacher at linf .25 and all adversarial training at linf"
    assert found[f"{overtakes} .3"] == "held"
    assert found["Complete permutation of the maps costs robustness"] == "held"
    # in 3 of 5 attacks; IR overtakes in the last two
    assert found["Adversarial training is most robust, IR second, for most attacks"] == "held"
    assert found["JR has lower norms than IR (R, SmG), and is less robust"] == "held"
    assert found["Maps of standard networks compare unfavourably with JR"] == "held"
    # which the text claims as well
    contradicted = "Maps of standard networks compare unfavourably with permuted maps"
    assert found[contradicted] == "not held"
    smallest, largest = TEXT["MNIST, IR minus JR"]
    gains = [TABLE1["ir-r-smg"][name] - TABLE1["jr"][name] for name in TABLE1["jr"]][1:]
    assert (min(gains), max(gains)) == pytest.approx((smallest, largest))


def test_the_papers_own_table_2():
    group = {**TABLE2[""], **TABLE2["80/255"]}
    found = verdicts(claims.table(*results(group, noise=0.005), "Table 2"))
    assert found["IR (R, SmG) beats JR on every attack"] == "held"
    assert found["Maps of standard networks compare unfavourably with permuted maps"] == "held"
    assert not any("overtakes" in statement for statement in found)
    smg, simp = TABLE2["80/255"]["ir-r-smg"], TABLE2["80/255"]["ir-r-simp"]
    gains = [smg[name] - simp[name] for name in ("linf-4/255", "linf-8/255")]
    assert gains == pytest.approx([6.71, 6.05])  # the text has 6.67 and 6.05


def test_one_network_per_row_decides_nothing():
    found = claims.table(*results(TABLE1, seeds=1), "Table 1")
    assert {claim.verdict for claim in found} == {"not decided"}
    assert claims.table(pd.DataFrame(), pd.DataFrame(), "Table 1") == []


def test_maps_of_other_teachers_are_compared():
    table = {**TABLE1, "ir-at-linf-0.3-simp": {k: v - 5 for k, v in TABLE1["ir-r-simp"].items()}}
    found = verdicts(claims.table(*results(table), "Table 1"))
    assert found["Maps of l2-trained networks beat those of linf-trained ones"] == "held"


def test_permutation():
    shares = np.repeat(np.linspace(0, 1, 6), 3)
    noise = RNG.normal(0, 0.01, len(shares))
    frame = pd.DataFrame(
        {
            "probability": shares,
            "attacked": 60 - 10 * shares + noise,
            "cosine": 0.8 - 0.7 * shares + noise,
            "label": 1 + 0.1 * shares + noise / 10,
            "accuracy": np.tile([97.0, 98.0, 99.0], 6),
        }
    )
    found = verdicts(claims.permutation(frame))
    assert found["More permutation lowers accuracy under attack"] == "held"
    assert found["More permutation lowers the cosine with the target maps"] == "held"
    assert found["More permutation lowers ||J_c||"] == "not held"
    assert found["More permutation lowers standard accuracy"] == "not decided"
    alone = "Lower norms alone do not explain robustness: both fall with permutation"
    assert found[alone] == "not held"
    assert claims.permutation(frame[frame["probability"] < 0.3]) == []


def test_trade_off():
    jr = pd.DataFrame({"kind": "jr", "accuracy": [90.0, 95.0, 99.0], "attacked": [60, 50, 10]})
    accuracy = np.linspace(90.5, 98.5, 8)
    line = np.interp(accuracy, jr["accuracy"], jr["attacked"])

    def found(shift):
        ir = pd.DataFrame({"kind": "ir", "accuracy": accuracy, "attacked": line + shift})
        [claim] = claims.trade_off(pd.concat([jr, ir]))
        return claim.verdict

    assert found(5) == "held"
    assert found(-5) == "not held"
    assert found(np.resize([5, -5], 8)) == "not decided"
    outside = pd.DataFrame({"kind": "ir", "accuracy": [80.0], "attacked": [99.0]})
    assert claims.trade_off(pd.concat([jr, outside]))[0].verdict == "not tested"
    assert claims.trade_off(jr) == []
