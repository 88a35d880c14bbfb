"""experiments/peck2017: tables and claims against NumPy, every module in small, going on."""

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from helpers.commands import usage_error
from helpers.nets import randomise
from helpers.pages import shown_claims
from matplotlib.backends.backend_agg import FigureCanvasAgg

from experiments.common import experiment as common
from experiments.common.members import Progress
from experiments.common.whole_study import execute_study
from experiments.peck2017 import (
    __main__ as everything,
)
from experiments.peck2017 import (
    claims,
    cnns,
    comparison,
    figures,
    increases,
    kernels,
    linear,
    normalisation,
    published,
    random_mlps,
    regularised,
    study,
    trained_mlps,
)
from tfrobust import bounds
from tfrobust.errors import InputError
from tfrobust.report import Run, RunFolderError

SMALL = {
    "linear": (linear, ["--features", "2", "--classes", "2", "--inputs", "12"]),
    "random-mlps": (
        random_mlps,
        ["--depths", "1", "--activations", "tanh", "--networks", "2", "--inputs", "6"],
    ),
    "trained-mlps": (
        trained_mlps,
        ["--datasets", "iris", "--seeds", "0", "--epochs", "2", "--inputs", "8"],
    ),
    "regularised": (
        regularised,
        ["--dataset", "iris", "--weights", "0", "0.1", "--epochs", "1", "--inputs", "8"],
    ),
    "cnns": (
        cnns,
        ["--lenet-iterations", "10", "--lenet-images", "6", "--carlini-wagner-steps", "0"],
    ),
    "kernels": (kernels, ["--iterations", "10", "--images", "4", "--scales", "0.5", "2"]),
    "normalisation": (
        normalisation,
        ["--variants", "lenet5", "lenet5_lrn1", "--iterations", "10", "--images", "6"],
    ),
}


TITLES = {
    "linear": "Peck 2017: random linear classifiers",
    "random-mlps": "Peck 2017: random MLPs",
    "trained-mlps": "Peck 2017: trained MLPs",
    "regularised": "Peck 2017: rewarding the last layer&#39;s robustness",
    "cnns": "Peck 2017: convolutional networks",
    "kernels": "Peck 2017: kernel scaling and layers",
    "normalisation": "Peck 2017: normalisation in LeNet-5",
}
# sources of claims that hold whatever the training of those that may not fail whatever the training
PROVEN = {"certified rules", "Figure 5.12", "Figure 5.13"}


# alike: LeNet-5 trained on digits as in kernels, bounded and attacked; MLPs as in regularised
ALIKE = {"cnns", "normalisation", "trained-mlps"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in ALIKE else n for n in sorted(SMALL)],
)
def test_every_experiment_in_small(name, tmp_path, monkeypatch):
    module, overrides = SMALL[name]
    given = ["--preset", "demo", "--out", str(tmp_path / "run"), *overrides]
    page = module.main(given)
    html, judged = page.read_text(), shown_claims(page, TITLES[name])
    proven = [claim for claim in judged if claim["source"] in PROVEN]
    assert len(proven) == (5 if name == "kernels" else 2)
    assert {claim["verdict"] for claim in proven} <= {"held", "not tested"}
    tested = [claim for claim in proven if claim["verdict"] == "held"]
    assert tested
    if name != "kernels":
        assert published.NOT_AT_HAND in html
    # a second call draws the page from what is there
    for place in (study, kernels.increases, module):
        for function in ("compare", "scaling", "increases"):
            if callable(getattr(place, function, None)):
                monkeypatch.setattr(place, function, lambda *_, **__: pytest.fail("computed again"))
    monkeypatch.setattr("tfrobust.training.fit", lambda *_, **__: pytest.fail("trained again"))
    if name in ("linear", "kernels", "regularised"):  # the others take the same way
        assert module.main(given).read_text() == html


def test_the_index_links_every_page(tmp_path, monkeypatch):
    names = ("linear", "random-mlps")
    some = {name: everything.STUDY.parts[name] for name in names}
    small_study = dataclasses.replace(everything.STUDY, parts=some)
    monkeypatch.setitem(linear.PRESETS, "demo", linear.Settings(features=(2,), inputs=5))
    small = random_mlps.Settings(
        depths=(1,), activations=("tanh",), networks=1, inputs=3, attack="none"
    )
    monkeypatch.setitem(random_mlps.PRESETS, "demo", small)
    index = execute_study(small_study, ["--preset", "demo", "--out", str(tmp_path)])
    html = index.read_text()
    for name in names:
        assert f'href="{name}/report.html"' in html and (tmp_path / name / "report.html").exists()
        for claim in json.loads((tmp_path / name / "claims.json").read_text()):
            assert claim["statement"] in html.replace("&#39;", "'")


def test_every_experiment_is_in_the_index_and_tried_here():
    folder = Path(everything.__file__).parent
    runnable = {path.stem for path in folder.glob("*.py") if "EXPERIMENT =" in path.read_text()}
    assert {name.replace("-", "_") for name in everything.STUDY.parts} == runnable
    assert everything.STUDY.parts.keys() == SMALL.keys()
    for name, part in everything.STUDY.parts.items():
        module, _ = SMALL[name]
        assert part.experiment is module.EXPERIMENT
        assert module.PRESETS.keys() == study.SCALES.keys()


def made_up():
    return pd.DataFrame(
        {
            "predicted": [0, 1, 2, 0],
            "printed": [1.0, 2.0, 0.5, 3.0],
            "certified": [0.5, 0.5, 0.5, 0.5],
            "tightened": [0.6, 0.7, 0.8, 0.9],
            "fast_gradient_sign": [2.0, 1.5, np.nan, 4.0],
            "carlini_wagner": [1.5, 2.5, np.nan, 2.9],
        }
    )


def test_violations_and_summary_against_numpy():
    frame = made_up()
    assert comparison.violations(frame, "printed") == 2  # 1.5 < 2 and 2.9 < 3
    assert comparison.violations(frame, "certified") == 0
    ratio = np.median([1 / 1.5, 2 / 1.5, 3 / 2.9])
    assert comparison.ratio_median(frame, "printed") == pytest.approx(ratio)
    table = comparison.summary({"net": frame}, "5.1", scale=255).set_index("quantity")
    fgs = np.array([2.0, 1.5, 4.0]) * 255
    row = table.loc["FGS"]
    assert (row["mean"], row["median"], row["std"]) == pytest.approx(
        (fgs.mean(), np.median(fgs), fgs.std())
    )
    assert row["examples"] == "3 of 4" and row["published mean"] == published.NOT_AT_HAND
    assert table.loc["printed bound", "violations"] == 2
    assert table.loc["certified bound, global", "published median"] == "ours only"


def texts(figure):
    """The words inside each axis."""
    return [[text.get_text() for text in axis.texts] for axis in figure.axes]


def test_figures_without_a_success_say_so():
    nothing = made_up().assign(fast_gradient_sign=np.nan, carlini_wagner=np.nan)
    figure = figures.scatter({"a": nothing, "b": made_up()})
    assert texts(figure) == [["no attack succeeded"], []]
    assert texts(figures.histograms(nothing, "a")) == [["no attack succeeded"], []]
    unbounded = nothing.assign(**dict.fromkeys(comparison.BOUNDS, np.inf))
    words = texts(figures.histograms(unbounded, "a"))
    assert words == [["no attack succeeded"], ["no bound is positive and finite"]]


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.18, 6), (2, 2)],
)
def test_tick_labels_do_not_overlap(low, high):
    frame = pd.DataFrame({"printed": [1e-6, 2e-6], "fast_gradient_sign": [low, high]})
    with figures.figures.style():
        figure = figures.scatter(dict.fromkeys("abcd", frame))
        FigureCanvasAgg(figure).draw()
    for axis in figure.axes:
        left, right = axis.get_xlim()
        labels = [
            label.get_window_extent()
            for which in ("major", "minor")
            for label in axis.get_xticklabels(which=which)
            if label.get_text() and left <= label.get_position()[0] <= right
        ]
        assert labels
        edges = sorted((box.x0, box.x1) for box in labels)
        assert all(a[1] < b[0] for a, b in itertools.pairwise(edges))


@pytest.mark.slow
def test_no_attack_succeeds_on_a_network(tmp_path):
    model = randomise(
        keras.Sequential(
            [
                keras.Input((28, 28, 1)),
                keras.layers.Conv2D(2, 3),
                keras.layers.Flatten(),
                keras.layers.Dense(10),
            ]
        ),
        0,
    )
    model.layers[-1].set_weights([1e-6 * model.layers[-1].kernel.numpy(), np.arange(10.0)])
    model.save(tmp_path / "w.keras")
    given = ["--lenet-weights", str(tmp_path / "w.keras"), "--lenet-images", "4"]
    page = cnns.main(["--preset", "demo", "--out", str(tmp_path / "run"), *given])
    assert "not tested" in page.read_text()
    frame = pd.read_parquet(tmp_path / "run" / "lenet5" / "compared.parquet")
    assert frame["fast_gradient_sign"].isna().all() and frame["carlini_wagner"].isna().all()
    judged = json.loads((page.parent / "claims.json").read_text())
    assert {claim["verdict"] for claim in judged} == {"not tested"}


def test_a_published_figure_is_shown_once_it_is_known(monkeypatch):
    monkeypatch.setitem(published.FIGURES, ("5.1", "net FGS", "median"), 0.25)
    table = comparison.summary({"net": made_up()}, "5.1").set_index("quantity")
    assert table.loc["FGS", "published median"] == 0.25


def test_comparison_is_what_its_parts_say():
    model = randomise(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), 0)
    x = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    frame = comparison.compare(
        model, x, (-30, 30), {"fast_gradient_value": {"max_epsilon": 40.0, "steps": 40}}
    )
    np.testing.assert_allclose(frame["tightened"], bounds.robustness(model, x).bound)
    # linear, two classes: printed, certified and FGV are all the exact distance
    np.testing.assert_allclose(frame["printed"], frame["certified"], rtol=1e-4)
    np.testing.assert_allclose(frame["printed"], frame["fast_gradient_value"], rtol=1e-3)
    assert comparison.violations(frame, "printed") == 0


def test_claims_go_both_ways():
    broken = claims.bounds_hold({"net": made_up()}, "Theorem 5.1")
    assert [claim.verdict for claim in broken] == ["not held", "held", "held"]
    assert broken[0].figure == "2 violations in 3 attacked examples (of 4): net 2"
    assert broken[0].source == "Theorem 5.1" and broken[1].source == "certified rules"
    nothing = made_up().assign(fast_gradient_sign=np.nan, carlini_wagner=np.nan)
    for claim in claims.bounds_hold({"net": nothing}, "x"):
        assert claim.verdict == "not tested"
        assert claim.figure == "0 violations in 0 attacked examples (of 4)"
    untested = claims.bounds_hold({"net": made_up().drop(columns="tightened")}, "x")
    assert untested[2].verdict == "not tested"
    rng = np.random.default_rng(0)
    low = pd.DataFrame({"d": rng.normal(1, 0.1, 50)})
    high = pd.DataFrame({"d": rng.normal(2, 0.1, 50)})
    assert claims.is_larger("s", low, high, "d", "t").verdict == "held"
    assert claims.is_larger("s", high, low, "d", "t").verdict == "not held"
    assert claims.is_larger("s", low[:3], high, "d", "t").verdict == "not tested"


def test_a_claim_of_growth_is_on_means_over_networks():
    def judged(settings, values):
        return claims.is_increasing("s", pd.DataFrame({"a": settings, "b": values}), "t")

    assert judged([0, 1, 2, 3], [1, 2, 3, 4]).verdict == "held"
    assert judged([0, 1, 2, 3], [4, 3, 2, 1]).verdict == "not held"
    assert judged([0, 1], [1, 2]).verdict == "not tested"
    # means 2, 3, 4, 5 grow; the eight networks do so less strictly
    claim = judged([0, 0, 1, 1, 2, 2, 3, 3], [0, 4, 1, 5, 2, 6, 3, 7])
    ranks = np.array([[1, 1, 3, 3, 5, 5, 7, 7], [0, 4, 1, 5, 2, 6, 3, 7]])
    assert claim.verdict == "held" and "Spearman 1.00 over 4 settings" in claim.figure
    assert f"{np.corrcoef(ranks)[0, 1]:.2f} over 8 single networks" in claim.figure
    gone = judged([0, 1, 2, 3, 9], [1, 2, 3, 4, np.nan])
    assert gone.verdict == "held" and "without 9" in gone.figure
    infinite = judged([0, 1, 2, 3, 3], [1, 2, 3, 4, np.inf])
    assert infinite.verdict == "not tested" and "without 3" in infinite.figure


def test_scaling_leaves_the_model_as_it_was():
    import reference_models

    model = randomise(reference_models.build("lenet5", input_shape=(16, 16, 1)), 0, scale=0.1)
    before = [w.copy() for w in model.get_weights()]
    x = np.random.default_rng(0).random((3, 16, 16, 1), dtype=np.float32)
    table = increases.scaling(model, x, (0.5, 1.0))
    length = np.linalg.norm(before[0])
    np.testing.assert_allclose(table["printed ratio"], [2 / length, 1 / length], rtol=1e-5)
    np.testing.assert_allclose(table["measured"], table["proven"], rtol=0.05)
    assert (table["measured"] >= table["proven"] * (1 - 1e-4)).all()
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def small_chain():
    layers = keras.layers
    stack = [
        layers.Rescaling(3.0),
        layers.Conv2D(3, 3, strides=2, activation="tanh"),
        layers.MaxPooling2D(2),
        layers.Flatten(),
        layers.Dense(4),
        layers.Dense(3),
    ]
    return randomise(keras.Sequential([keras.Input((9, 9, 2)), *stack]), 1)


def test_measured_increases_against_written_out_matrices():
    """Linear steps' norms by NumPy's singular values of the layer applied to the unit vectors."""
    x = np.random.default_rng(0).uniform(0, 1, (3, 9, 9, 2)).astype(np.float32)
    steps = increases.graph_steps(small_chain(), x)
    found = increases.measured(steps, x)
    for step, value in zip(steps, found, strict=True):
        if step.kind in ("Rescaling", "Conv2D", "Dense"):
            eye = np.eye(int(np.prod(step.input_shape)), dtype=np.float32)
            rows = np.asarray(step.function(eye.reshape(-1, *step.input_shape)))
            rows = rows - np.asarray(step.function(np.zeros((1, *step.input_shape), np.float32)))
            norm = np.linalg.svd(rows.reshape(len(eye), -1), compute_uv=False)[0]
            assert norm * 0.98 <= value <= norm * (1 + 1e-4), step.kind
        else:  # tanh, max pool, flatten
            assert 0.2 < value <= 1 + 1e-4, step.kind
    assert increases.measured(steps, x, only=1) == [pytest.approx(found[1])]


def test_increases_behind_a_first_layer_and_linear_layers_in_a_row():
    x = np.random.default_rng(0).uniform(0, 1, (3, 9, 9, 2)).astype(np.float32)
    table = increases.increases(small_chain().__class__(small_chain().layers[1:]), x)
    assert set(table.loc[table["alone"], "rule"]) == {"Theorem 5.1", "Theorem 5.3, eq. (5.4)"}
    above, near = claims.increases_are_proven(table, "layers", "t")
    assert (above.verdict, near.verdict) == ("held", "held")


def test_claims_on_increases_go_both_ways():
    def both(table):
        return [claim.verdict for claim in claims.increases_are_proven(table, "layers", "t")]

    table = pd.DataFrame({"measured": [1.0, 1.96], "proven": [1.0, 2.0]})
    assert both(table) == [
        "held",
        "held",
    ]
    wrong = table.assign(proven=[1.0, 1.9])  # a norm that is too small
    assert both(wrong) == [
        "not held",
        "held",
    ]
    loose = table.assign(proven=[1.0, 3.0])
    assert both(loose)[1] == "not held"
    nonlinear = loose.assign(linear=[True, False])
    assert both(nonlinear)[1] == "held"
    assert (
        claims.increases_are_proven(loose.assign(linear=False), "layers", "t")[1].verdict
        == "not tested"
    )

    ratios = pd.DataFrame({"printed ratio": [1.0, 2.0], "closed form, printed": [1.0, 2.0]})
    assert claims.scaling_divides_kappa(ratios).verdict == "held"
    ratios["printed ratio"] = [1.0, 1.0]  # as if scaling had been missed
    assert claims.scaling_divides_kappa(ratios).verdict == "not held"

    layers = pd.DataFrame(
        {"layer": ["conv", "dense"], "printed": [2.0, 1.0], "alone": [True, False]}
    )
    assert claims.increases_obey_printed_rules(layers.assign(measured=[1.9, 9.0])).verdict == "held"
    judged = claims.increases_obey_printed_rules(layers.assign(measured=[3.0, 9.0]))
    assert judged.verdict == "not held" and "conv 1.5" in judged.figure
    assert claims.increases_obey_printed_rules(layers.assign(alone=False)).verdict == "not tested"


def test_devices_that_make_no_sense_here():
    with pytest.raises(InputError, match="runs on one device"):
        linear.main(["--preset", "demo", "--strategy", "mirrored"])


@pytest.mark.parametrize(
    ("module", "given", "message"),
    [
        (linear, "--classes 1", "--classes must be at least 2, got 1"),
        (linear, "--inputs 0", "--inputs must be at least 1, got 0"),
        (linear, "--features 2 2", "--features holds 2 more than once"),
        (linear, "--features", "--features needs at least one value"),
        (random_mlps, "--depths 0", "--depths must be at least 1, got 0"),
        (trained_mlps, "--seeds -1", "--seeds must be at least 0, got -1"),
        (trained_mlps, "--learning-rate nan", "--learning-rate must be finite and positive"),
        (regularised, "--weights -1", "--weights must be finite and not negative, got -1"),
        (regularised, "--weights inf", "--weights must be finite"),
        (cnns, "--nin-weights x.keras", "--nin-weights needs --nin-data"),
        (kernels, "--scales 0", "--scales must be finite and positive, got 0"),
        (kernels, "--batch-size 0", "--batch-size must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_leave_nothing_behind(module, given, message, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(InputError, match=f"^{message}"):
        module.main(["--preset", "demo", "--out", str(out), *given.split()])
    assert not out.exists()


@pytest.mark.parametrize(
    ("module", "option", "wrong", "right"),
    [
        (random_mlps, "--attack", "foo", "deepfool"),
        # would be computed, and shown nowhere
        (random_mlps, "--attack", "LinfPGD", "deepfool"),
        (random_mlps, "--activations", "gelu", "tanh"),
        (trained_mlps, "--datasets", "mnist", "spambase"),
        (regularised, "--dataset", "digits", "iris"),
        (normalisation, "--variants", "lenet6", "lenet5_lrn1"),
        (normalisation, "--dataset", "iris", "cifar10"),
        (cnns, "--lenet-data", "none", "cifar10"),
        (cnns, "--nin-data", "svhn", "none"),
    ],
)
def test_an_unknown_choice_is_answered_with_the_known_ones(
    module, option, wrong, right, tmp_path, capsys
):
    out = tmp_path / "run"
    message = usage_error(module.main, ["--preset", "demo", "--out", out, option, wrong], capsys)
    assert option in message and wrong in message and right in message
    assert not out.exists()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of models that do not go with digits, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("weights")
    layers = keras.layers

    def saved(name, shape, *stack):
        model = randomise(keras.Sequential([keras.Input(shape), *stack]), 0)
        if name == "infinite":
            model.set_weights([np.full_like(w, np.inf) for w in model.get_weights()])
        model.save(folder / f"{name}.keras")

    saved("dense", (28, 28, 1), layers.Flatten(), layers.Dense(10))
    saved("shape", (8, 8, 1), layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(10))
    saved("classes", (28, 28, 1), layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(3))
    saved("infinite", (28, 28, 1), layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(10))
    norm = layers.LayerNormalization()
    saved("rule", (28, 28, 1), layers.Conv2D(2, 3), norm, layers.Flatten(), layers.Dense(10))
    return folder


@pytest.mark.parametrize(
    ("module", "setting", "file", "message"),
    [
        (kernels, "weights", "dense", "a model with a Conv2D layer is needed"),
        (kernels, "weights", "rule", ".*LayerNormalization"),
        (kernels, "weights", "missing", ".*no"),
        (
            cnns,
            "lenet-weights",
            "shape",
            r"digits has shape \(1, 28, 28, 1\), but the model takes \(batch, 8, 8, 1\)",
        ),
        (cnns, "lenet-weights", "classes", "it has 3 classes, digits has 10"),
        (cnns, "lenet-weights", "infinite", "it holds weights that are not finite"),
    ],
)
def test_weights_that_do_not_fit(module, setting, file, message, weights, tmp_path):
    out, path = tmp_path / "run", weights / f"{file}.keras"
    with pytest.raises(InputError, match=f"^--{setting} .*{file}.keras: {message}"):
        module.main(["--preset", "demo", "--out", str(out), f"--{setting}", str(path)])
    assert not out.exists()


@pytest.mark.parametrize(("module", "setting"), [(cnns, "lenet-weights"), (kernels, "weights")])
def test_other_contents_of_a_weights_file_are_noticed(module, setting, tmp_path, monkeypatch):
    path = tmp_path / "w.keras"
    monkeypatch.setattr(common, "_make", lambda *_: None)
    monkeypatch.setattr(common, "_write_page", lambda *_, **__: None)

    def given(seed, out="run"):
        stack = [keras.layers.Conv2D(2, 3), keras.layers.Flatten(), keras.layers.Dense(10)]
        randomise(keras.Sequential([keras.Input((28, 28, 1)), *stack]), seed).save(path)
        place = str(tmp_path / out)
        return module.main(["--preset", "demo", "--out", place, f"--{setting}", str(path)])

    given(0)
    with pytest.raises(RunFolderError, match=r"weights = .*w\.keras had other contents.*another"):
        given(1)
    given(1, out="another")


def test_weights_of_the_reward_in_any_order(tmp_path, monkeypatch):
    settings = dataclasses.replace(regularised.PRESETS["demo"], weights=(0.5, 0.0), seeds=(0, 1))
    task = common.Task(Run(tmp_path, settings), settings, "demo", None)
    members = regularised.EXPERIMENT.members(settings)
    for distance, member in zip([3.0, 5.0, 1.0, 2.0], members, strict=True):
        frame = made_up().assign(fast_gradient_sign=distance)
        task.run.frame_step(f"{member.folder}/compared.parquet", lambda frame=frame: frame)
        task.run.write_json(f"{member.folder}/test.json", {"accuracy": 0.5, "loss": 1.0})
    drawn = {}
    monkeypatch.setattr(
        regularised.figures,
        "curves",
        lambda x, lines, **_: drawn.update(dict(zip(x, lines["FGS"], strict=True))),
    )
    regularised.report(task, Progress(tuple(members), (), ())).drawings[0].draw()
    assert drawn == {0.5: 4.0, 0.0: 1.5}


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_report_of_nothing(name, tmp_path):
    """Before the first network is finished, and where all have failed."""
    experiment = SMALL[name][0].EXPERIMENT
    settings = experiment.presets["demo"]
    test = SimpleNamespace(images=np.zeros((3, 2)))
    task = common.Task(Run(tmp_path, settings), settings, "demo", {"test": test})
    members = experiment.members(settings)
    assert len({member.folder for member in members}) == len(members) > 0
    content = experiment.report(task, Progress((), (), tuple(members)))
    assert not content.drawings
    assert {claim.verdict for claim in content.claims} <= {"not tested"}
