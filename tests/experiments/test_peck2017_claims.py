"""Peck 2017's printed figures, and its claims on results that are made up to go either way."""

import numpy as np
import pandas as pd
import pytest
from helpers.compared import made_up

from experiments.peck2017 import (
    claims,
    cnn_claims,
    comparison,
    kernels,
    layer_claims,
    mlp_claims,
    published,
)

FGS = comparison.FGS


def test_every_cell_is_there():
    sizes = {table: sum(map(len, rows.values())) for table, rows in published.TABLES.items()}
    assert sizes == {"3.1": 45, "4.1": 8, "4.2": 88, "4.3": 15, "5.1": 6, "5.2": 10, "5.3": 21}
    assert sum(sizes.values()) == 193
    assert published.value("5.1", "LeNet-5", "Normalized theoretical bound") == 7.274294e-8
    assert published.value("5.3", "LeNet-LRN2", "Rate") == pytest.approx(0.9552)
    assert np.isnan(published.value("3.1", "1", "Sample interval"))
    assert published.value("4.1", "Second-order", "tanh") == pytest.approx(0.3849001795)
    assert len(published.GARBLED) == 7
    for table, row, column in published.GARBLED:
        assert column in published.TABLES[table][row]


def test_cells_beside_ours():
    ours = {"LeNet-5": {"Min": 0.0013, "Mean": 13.36}, "other": {"Min": 1.0}}
    frame = published.cells("5.2", ours).set_index(["row", "column"])
    assert len(frame) == 10
    assert frame.loc[("LeNet-5", "Mean"), "ours / thesis"] == pytest.approx(0.5)
    assert frame.loc[("LeNet-5", "Min"), "ours / thesis"] == pytest.approx(2)
    assert frame.loc[("LeNet-5", "Max"), "ours"] == ""
    assert np.isnan(frame.loc[("CIFAR-NIN", "Min"), "ours / thesis"])
    unsure = published.cells("4.2", {}).query("note == 'uncertain'")
    assert set(unsure["row"]) == {"5", "6", "7"}


def test_deviations_and_statistics_against_numpy():
    frame = made_up()
    found = comparison.deviations(frame)
    np.testing.assert_allclose(found, [1.0, -0.5, 1.0])
    values = comparison.statistics([1.0, -0.5, np.nan, 1.0])
    assert values["Mean"] == pytest.approx(0.5) and values["Median"] == 1.0
    assert values["Std"] == pytest.approx(np.std([1, -0.5, 1], ddof=1))
    assert (values["Min"], values["Max"]) == (-0.5, 1.0)
    assert values["error of mean"] == pytest.approx(values["Std"] / np.sqrt(3))
    assert np.isnan(comparison.statistics([])["Mean"])
    assert comparison.violations(frame, "printed") == 2  # 1.5 < 2 and 2.9 < 3
    assert comparison.violations(frame, "certified") == 0
    ratio = np.median([1 / 1.5, 2 / 1.5, 3 / 2.9])
    assert comparison.ratio_median(frame, "printed") == pytest.approx(ratio)
    table = comparison.quantities({"net": frame}, scale=255).set_index("quantity")
    fgs = np.array([2.0, 1.5, 4.0]) * 255
    assert table.loc["FGS", "Mean"] == pytest.approx(fgs.mean())
    assert table.loc["FGS", "examples"] == "3 of 4"
    assert table.loc["printed bound", "violations"] == 2


def test_bounds_hold_goes_both_ways():
    broken = claims.bounds_hold({"net": made_up()}, "Theorem 5.1")
    assert [claim.verdict for claim in broken] == ["not held", "held", "held"]
    assert broken[0].figure == "2 violations in 3 attacked examples (of 4): net 2"
    assert broken[0].source == "Theorem 5.1" and broken[1].source == "certified rules"
    nothing = made_up().assign(**{FGS: np.nan, "carlini_wagner": np.nan})
    for claim in claims.bounds_hold({"net": nothing}, "x"):
        assert claim.verdict == "not tested"
        assert claim.figure == "0 violations in 0 attacked examples (of 4)"
    untested = claims.bounds_hold({"net": made_up().drop(columns="tightened")}, "x")
    assert untested[2].verdict == "not tested"


def test_larger_ratio_and_trend_have_three_answers():
    rng = np.random.default_rng(0)
    low, high = rng.normal(1, 0.1, 50), rng.normal(2, 0.1, 50)
    assert claims.is_larger("s", low, high, "t").verdict == "held"
    assert claims.is_larger("s", high, low, "t").verdict == "not held"
    assert claims.is_larger("s", low, rng.normal(1, 0.1, 50), "t").verdict == "not decided"
    assert claims.is_larger("s", low[:3], high, "t").verdict == "not tested"

    ratio = claims.ratio_within("s", "t", low, high, (1.8, 2.2), printed=2.1)
    assert ratio.verdict == "held" and "the thesis's 2.1" in ratio.figure
    assert claims.ratio_within("s", "t", low, high, (3, 4)).verdict == "not held"
    assert claims.ratio_within("s", "t", low, high, (2.0, 3)).verdict == "not decided"
    assert claims.ratio_within("s", "t", low[:2], high, (1, 3)).verdict == "not tested"

    def judged(settings, values, **options):
        frame = pd.DataFrame({"a": settings, "b": values})
        return claims.trend("s", frame, "t", **options).verdict

    settings, values = [0, 1, 2, 3, 4] * 2, [1, 2, 3, 4, 5, 1.5, 2.5, 3.5, 4.5, 5.5]
    assert judged(settings, values) == "held"
    assert judged(settings, values, rises=False) == "not held"
    assert judged(settings, [1, 2, 1, 2, 1, 2, 1, 2, 1, 2]) == "not decided"
    assert judged([0, 1, 2], [1, 2, 3]) == "not decided"  # one of six orders
    assert judged([0, 1, 0, 1], [1, 2, 3, 4]) == "not tested"


def test_a_claim_of_several_parts():
    parts = {
        name: claims.Claim(name, name, "f", "s")
        for name in ("held", "not held", "not decided", "not tested")
    }

    def verdict(*names):
        return claims.all_of("s", "t", [parts[name] for name in names]).verdict

    assert verdict("held", "held") == "held"
    assert verdict("held", "not decided") == "not decided"
    assert verdict("held", "not decided", "not held") == "not held"
    assert verdict("held", "not tested") == "not tested"
    assert verdict() == "not tested"


def deviating(mean, spread=0.05, networks=30, seed=0):
    """A frame whose deviations are about `mean`."""
    rng = np.random.default_rng(seed)
    network = np.repeat(np.arange(networks), 10)
    off = rng.normal(mean, spread * mean, len(network))
    return pd.DataFrame({"network": network, "printed": 1.0, "certified": 1.0, FGS: 1.0 + off})


def verdicts(found):
    return {claim.statement: claim.verdict for claim in found}


def test_linear_classifiers_as_the_thesis_has_them_and_otherwise():
    printed = {
        test: [published.value("3.1", test, column) for column in ("Mean", "Std")]
        for test in published.TABLES["3.1"]
    }
    frames = {
        test: deviating(mean, spread / mean, networks=300, seed=int(test))
        for test, (mean, spread) in printed.items()
    }
    exact = "FGS is exact for linear classifiers: its perturbations are the minimal ones"
    found = verdicts(mlp_claims.linear(frames))
    assert found.pop(exact) == "not held"  # its own deviations say so
    assert set(found.values()) == {"held"}
    flat = {name: deviating(0.1, seed=int(name)) for name in printed}
    other = verdicts(mlp_claims.linear(flat))
    three = "Ten times the dimensions make the mean deviation about three times as large"
    assert other[three] == "not held"
    exact = {name: deviating(1e-9, seed=int(name)) for name in "1"}
    assert mlp_claims.linear(exact)[0].verdict == "held"
    assert mlp_claims.linear({}) == []


def test_mlps_both_ways():
    wide, narrow = deviating(1.2), deviating(0.6, seed=1)
    larger = deviating(0.6, 0.2, seed=2)
    found = mlp_claims.random_mlps({"1": narrow, "4": wide, "8": larger})
    assert [claim.verdict for claim in found] == ["held", "held"]
    found = mlp_claims.random_mlps({"1": larger, "4": narrow, "8": narrow})
    assert found[-1].verdict == "not held"
    order = {"Iris": deviating(0.7), "Wine": deviating(1.3), "Spambase": deviating(3.4)}
    good = mlp_claims.trained_mlps(order, {"Iris": 1.0, "Wine": 0.995, "Spambase": 0.93})
    assert {claim.verdict for claim in good} == {"held"}
    bad = mlp_claims.trained_mlps(
        {"Iris": order["Wine"], "Wine": order["Iris"]}, {"Iris": 0.9, "Wine": 1.0}
    )
    assert [claim.verdict for claim in bad] == ["not held", "held", "not held"]


def test_the_reward_both_ways():
    weights = np.repeat([0.0, 0.1, 0.3, 1.0, 3.0], 3)
    rows = {"dataset": "spambase", "weight": weights}
    falling = pd.DataFrame({**rows, "error": 0.9 - 0.1 * weights, "accuracy": 0.9 - 0.1 * weights})
    assert set(verdicts(mlp_claims.regularised(falling)).values()) == {"held"}
    rising = pd.DataFrame({**rows, "error": 0.5 + 0.1 * weights, "accuracy": 0.9 + 0.0 * weights})
    found = list(verdicts(mlp_claims.regularised(rising)).values())
    assert found == ["not held", "not tested", "not held"]


def images(predicted, becomes, epsilon=0.1):
    predicted, becomes = np.array(predicted), np.array(becomes)
    length = np.where(becomes >= 0, 28 * epsilon, np.nan)
    return pd.DataFrame(
        {
            "predicted": predicted,
            "becomes": becomes,
            FGS: length,
            "epsilon": np.where(becomes >= 0, epsilon, np.nan),
            "printed": 1e-8,
            "certified": 1e-3,
        }
    )


def test_what_images_become():
    digits, names = [str(n) for n in range(10)], ("a",) * 10
    as_printed = images([8] * 6 + [0] * 9994, [-1] * 6 + [8] * 6000 + [3] * 2994 + [2] * 1000)
    found = cnn_claims.changes(as_printed, "LeNet-5", digits)
    assert [claim.verdict for claim in found] == ["held"] * 3
    other = images([1] * 50 + [0] * 50, [-1] * 50 + [3] * 50)
    found = cnn_claims.changes(other, "LeNet-5", digits)
    assert [claim.verdict for claim in found] == ["not held"] * 3
    all_changed = cnn_claims.changes(images([0] * 9, [8] * 9), "LeNet-5", digits)
    assert all_changed[1].verdict == "not tested"
    cifar = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    pairs = images(
        [8] * 50 + [1] * 40 + [5] * 30 + [0] * 9, [0] * 50 + [9] * 40 + [3] * 30 + [-1] * 9
    )
    found = cnn_claims.changes(pairs, "CIFAR-NIN", cifar)
    assert [claim.verdict for claim in found] == ["held", "held"]
    assert len(names) == 10


def test_levels_steps_and_scaling():
    lenet = images([0] * 60, [1] * 60).assign(**{FGS: [0.001] + [1.0] * 59, "epsilon": 0.3})
    nin = images([0] * 60, [1] * 60).assign(epsilon=0.02)
    found = cnn_claims.levels({"LeNet-5": lenet, "CIFAR-NIN": nin}, {"LeNet-5": 1, "CIFAR-NIN": 1})
    assert [claim.verdict for claim in found] == ["held", "not held", "held"]

    labels = np.array([[0, 1, 0, 1], [2, 3, 2, 3]])
    steps = np.array([[1.0, 0.01, 0.01], [2.0, 0.01, 0.01]])
    good = cnn_claims.iterated({"step_distance": steps, "labels": labels}, "net")
    assert [claim.verdict for claim in good] == ["held", "held"]
    wander = np.array([[0, 1, 2, 3], [2, 3, 4, 5]])
    bad = cnn_claims.iterated({"step_distance": np.ones((2, 3)), "labels": wander}, "net")
    assert [claim.verdict for claim in bad] == ["not held", "not held"]
    failed = {"step_distance": np.full((2, 3), np.inf), "labels": labels}
    assert cnn_claims.iterated(failed, "net") == []

    ratios = pd.DataFrame({"kernels": [0, 1, 2], "scale": 0.9, "ratio": 0.9 ** -np.arange(3.0)})
    assert {claim.verdict for claim in cnn_claims.scaling(ratios)} == {"held"}
    missed = ratios.assign(ratio=1.0)
    assert cnn_claims.scaling(missed)[-1].verdict == "not held"


def test_normalisation_both_ways():
    rng = np.random.default_rng(0)

    def frame(rate, epsilon):
        count = 400
        found = images([0] * count, np.where(np.arange(count) < rate * count, 1, -1))
        return found.assign(
            epsilon=np.where(found[FGS].notna(), epsilon * rng.uniform(0.8, 1.2, count), np.nan)
        )

    def networks(**least):
        rows = [
            {"variant": name, "accuracy": accuracy, "least epsilon": value}
            for name, (accuracy, *values) in least.items()
            for value in values
        ]
        return pd.DataFrame(rows)

    frames = {"lenet5": frame(0.99, 25), "lenet5_lrn1": frame(0.9, 30)}
    table = networks(lenet5=(0.99, 0.1, 0.2), lenet5_lrn1=(0.989, 0.3, 0.4))
    found = cnn_claims.normalisation(table, frames)
    assert [claim.verdict for claim in found] == ["held"] * 4
    swapped = {"lenet5": frames["lenet5_lrn1"], "lenet5_lrn1": frames["lenet5"]}
    table = networks(lenet5=(0.99, 0.3, 0.4), lenet5_lrn1=(0.95, 0.1, 0.2))
    found = cnn_claims.normalisation(table, swapped)
    assert [claim.verdict for claim in found] == ["not held"] * 4
    mixed = networks(lenet5=(0.99, 0.1, 0.5), lenet5_lrn1=(0.99, 0.3, 0.4))
    found = cnn_claims.normalisation(
        mixed, {"lenet5": frames["lenet5"], "lenet5_lrn1": frames["lenet5"]}
    )
    assert [claim.verdict for claim in found] == ["not decided"] * 3 + ["held"]
    assert cnn_claims.normalisation(mixed, {}) == []


def test_closed_forms_of_figure_5_13():
    found = kernels.closed_form(np.arange(1, 5), 0.01, 0.1, 2.0)
    np.testing.assert_allclose(found, [1.05, 6.05, 506.05, 50506.05])
    saturated = kernels.closed_form(np.array([400]), 1.5, 0.1, 2.0)[0]
    assert saturated == pytest.approx(1 + 0.1 / (2 * (1 - 1 / 1.5)))
    assert kernels.closed_form(np.array([3]), 1.0, 0.1, 2.0)[0] == pytest.approx(1.15)
    # eq. (5.13) itself: every layer's kappa divided by a factor, then delta added
    factors, last, delta = np.array([3.0, 0.5, 7.0, 2.0]), 2.0, 0.3
    kappa, raised, kappas = last, last, []
    for factor in factors[::-1]:
        kappa, raised = kappa / factor, raised / factor + delta
        kappas.append(kappa)
    assert raised / kappa == pytest.approx(1 + delta * sum(1 / k for k in kappas))


def test_claims_on_increases_go_both_ways():
    def both(table):
        return [claim.verdict for claim in layer_claims.increases_are_proven(table)]

    table = pd.DataFrame({"measured": [1.0, 1.96], "proven": [1.0, 2.0], "linear": True})
    assert both(table) == ["held", "held"]
    assert both(table.assign(proven=[1.0, 1.9])) == ["not held", "held"]  # a norm too small
    loose = table.assign(proven=[1.0, 3.0])
    assert both(loose)[1] == "not held"
    assert both(loose.assign(linear=[True, False]))[1] == "held"
    assert both(loose.assign(linear=False))[1] == "not tested"

    layers = pd.DataFrame(
        {"layer": ["conv", "dense"], "printed": [2.0, 1.0], "alone": [True, False]}
    )
    obey = layer_claims.increases_obey_printed_rules
    assert obey(layers.assign(measured=[1.9, 9.0])).verdict == "held"
    judged = obey(layers.assign(measured=[3.0, 9.0]))
    assert judged.verdict == "not held" and "conv 1.5" in judged.figure
    assert obey(layers.assign(alone=False)).verdict == "not tested"
