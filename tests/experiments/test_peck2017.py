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
from helpers.compared import made_up
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
    cnns,
    comparison,
    depth,
    figures,
    increases,
    kernels,
    layer_claims,
    linear,
    normalisation,
    random_mlps,
    regularised,
    study,
    trained_mlps,
)
from tfrobust import bounds
from tfrobust.errors import InputError
from tfrobust.report import Run, RunFolderError

SMALL = {
    "linear": (linear, ["--tests", "1", "4", "--classifiers", "2", "--samples", "4"]),
    "random-mlps": (random_mlps, ["--tests", "1", "--share", "0.02"]),
    "trained-mlps": (
        trained_mlps,
        ["--datasets", "iris", "--seeds", "0", "--epochs", "2", "--inputs", "test"],
    ),
    "regularised": (
        regularised,
        ["--datasets", "iris", "--weights", "0", "0.1", "--epochs", "1"],
    ),
    "cnns": (
        cnns,
        [
            *("--lenet-iterations", "10", "--lenet-images", "6", "--carlini-wagner-steps", "0"),
            *("--lbfgs-images", "1"),
        ],
    ),
    "kernels": (kernels, ["--iterations", "10", "--images", "4"]),
    "normalisation": (
        normalisation,
        ["--variants", "lenet5", "lenet5_lrn1", "--iterations", "10", "--images", "6"],
    ),
    "depth": (depth, ["--depths", "1", "2", "--iterations", "10", "--images", "4"]),
}


TITLES = {
    "linear": "Peck 2017: random linear classifiers",
    "random-mlps": "Peck 2017: random MLPs",
    "trained-mlps": "Peck 2017: trained MLPs",
    "regularised": "Peck 2017: rewarding the last layer&#39;s robustness",
    "cnns": "Peck 2017: convolutional networks",
    "kernels": "Peck 2017: kernel scaling and layers",
    "normalisation": "Peck 2017: normalisation in LeNet-5",
    "depth": "Peck 2017: depth against width",
}
# sources of claims that may not fail, whatever the training
PROVEN = {"certified rules", "certified rules, layer by layer", "Figure 5.12", "Section 5.4"}


# alike: LeNet-5 trained on digits as in kernels, bounded and attacked; MLPs as in regularised
ALIKE = {"cnns", "normalisation", "trained-mlps", "depth"}


CELLS = {
    "linear": ["3.1"],
    "random-mlps": ["4.1", "4.2"],
    "trained-mlps": ["4.3"],
    "cnns": ["5.1", "5.2"],
    "normalisation": ["5.3"],
}


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
    for table in CELLS.get(name, ()):
        assert f"Table {table}, cell by cell" in html
    # a second call draws the page from what is there
    for place in (study, kernels.increases, module):
        for function in ("compare", "scaling", "increases", "kappas"):
            if callable(getattr(place, function, None)):
                monkeypatch.setattr(place, function, lambda *_, **__: pytest.fail("computed again"))
    monkeypatch.setattr("tfrobust.training.fit", lambda *_, **__: pytest.fail("trained again"))
    if name in ("linear", "kernels", "regularised"):  # the others take the same way
        assert module.main(given).read_text() == html


def test_the_index_links_every_page(tmp_path, monkeypatch):
    names = ("linear", "regularised")
    some = {name: everything.STUDY.parts[name] for name in names}
    small_study = dataclasses.replace(everything.STUDY, parts=some)
    monkeypatch.setitem(linear.PRESETS, "demo", linear.Settings(tests=(1,), classifiers=1))
    small = regularised.Settings(datasets=("iris",), weights=(0.0,), seeds=(0,), epochs=1)
    monkeypatch.setitem(regularised.PRESETS, "demo", small)
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


def texts(figure):
    """The words inside each axis."""
    return [[text.get_text() for text in axis.texts] for axis in figure.axes]


def test_figures_without_a_success_say_so():
    nothing = made_up().assign(fast_gradient_sign=np.nan, carlini_wagner=np.nan)
    figure = figures.scatter({"a": nothing, "b": made_up()})
    assert texts(figure) == [["no attack succeeded"], []]
    boxes = figures.boxplots({"a": np.array([1.0, 2.0]), "b": np.array([])}, ylabel="y")
    assert texts(boxes) == [["no attack succeeded"]]


def test_figures_show_what_they_are_given():
    counts = study.class_changes(made_up(), 3)
    np.testing.assert_array_equal(counts, [[0, 1, 1], [1, 0, 0], [0, 0, 0]])
    figure = figures.heatmaps({"net": counts}, {"net": "abc"})
    assert sorted(texts(figure)[0]) == ["1", "1", "1"]
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["a", "b", "c"]

    images = np.random.default_rng(0).random((2, 5, 5, 3))
    drawn = figures.gallery(255 * images, 0 * images + 51, ["a -> b", "c -> d"], (0, 255))
    rows = np.array(drawn.axes).reshape(2, 2)
    np.testing.assert_allclose(rows[0, 1].images[0].get_array(), images[1])
    expected = np.clip(images[0] + 0.2, 0, 1)
    np.testing.assert_allclose(rows[1, 0].images[0].get_array(), expected)
    assert rows[1, 1].get_xlabel() == "c -> d"

    panels = figures.panels(
        [0, 0.1, 1],
        {"iris": {"accuracy": [1, 0.9, 0.5]}, "wine": {"accuracy": [0.8, 0.7, 0.6]}},
        xlabel="l",
        ylabel="share",
    )
    assert [axis.get_title() for axis in panels.axes] == ["iris", "wine"]
    np.testing.assert_array_equal(panels.axes[1].lines[0].get_ydata(), [0.8, 0.7, 0.6])


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


def test_comparison_is_what_its_parts_say():
    model = randomise(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), 0)
    x = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    settings = {
        comparison.FGS: {"max_epsilon": 40.0, **comparison.AS_PRINTED},
        "fast_gradient_value": {"max_epsilon": 40.0, "steps": 40},
    }
    frame = comparison.compare(model, x, (-30, 30), settings)
    np.testing.assert_allclose(frame["tightened"], bounds.robustness(model, x).bound)
    # linear, two classes: printed, certified and FGV are all the exact distance
    np.testing.assert_allclose(frame["printed"], frame["certified"], rtol=1e-4)
    np.testing.assert_allclose(frame["printed"], frame["fast_gradient_value"], rtol=1e-3)
    assert comparison.violations(frame, "printed") == 0
    np.testing.assert_allclose(frame[comparison.FGS], 3**0.5 * frame["epsilon"], rtol=1e-3)
    np.testing.assert_array_equal(frame["becomes"], 1 - frame["predicted"])
    assert (comparison.deviations(frame) > -1e-5).all()


def test_parameters_and_inputs_are_those_of_the_tables():
    row = linear.setting(4)
    assert row == {"features": 2, "classes": 5, "sample": (-10, 10), "parameter": (-1, 1)}
    for test, expected in ((5, (3, 30, 5)), (6, (3, 10, 50)), (7, (3, 20, 5))):
        row = random_mlps.setting(test)
        assert (row["depth"], row["width"], row["classes"]) == expected
    assert random_mlps.setting(8, 0.5)["networks"] == 5
    assert random_mlps.setting(8)["samples"] == 100


def test_widths_of_equal_networks():
    import reference_models

    for number in (1, 2, 5):
        width = depth.width_for(20, 4, number, 3000)
        model = reference_models.build(
            "mlp", input_shape=(20,), hidden=(width,) * number, classes=4
        )
        wider = reference_models.build(
            "mlp", input_shape=(20,), hidden=(width + 1,) * number, classes=4
        )
        assert abs(model.count_params() - 3000) <= abs(wider.count_params() - 3000)
        assert abs(model.count_params() / 3000 - 1) < 0.05


def test_scaling_leaves_the_model_as_it_was():
    import reference_models

    model = randomise(reference_models.build("lenet5", input_shape=(16, 16, 1)), 0, scale=0.1)
    before = [w.copy() for w in model.get_weights()]
    x = np.random.default_rng(0).random((3, 16, 16, 1), dtype=np.float32)
    table = increases.scaling(model, x, np.array([0, 1, 2]), 0.5, 0.4)
    np.testing.assert_allclose(table["ratio"], [1, 2, 4], rtol=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    found = increases.kappas(model, x)
    assert found["kind"].tolist() == ["Conv2D", "MaxPooling2D"] * 2
    # kappa_1 = kappa_2 / ||W_1||, kappa_2 = kappa_3 / t_1
    kernel = np.linalg.norm(before[0])
    assert found["kappa"][0] == pytest.approx(found["kappa"][1] / kernel, rel=1e-5)
    assert found["kappa"][1] == pytest.approx(found["kappa"][2] / 6, rel=1e-5)


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
    assert set(table.loc[table["alone"], "rule"]) == {"Theorem 5.1", "Theorem 5.3"}
    above, near = layer_claims.increases_are_proven(table)
    assert (above.verdict, near.verdict) == ("held", "held")


def test_devices_that_make_no_sense_here():
    with pytest.raises(InputError, match="runs on one device"):
        linear.main(["--preset", "demo", "--strategy", "mirrored"])


@pytest.mark.parametrize(
    ("module", "given", "message"),
    [
        (linear, "--classifiers 0", "--classifiers must be at least 1, got 0"),
        (linear, "--tests 2 2", "--tests holds 2 more than once"),
        (linear, "--tests", "--tests needs at least one value"),
        (linear, "--seed 4294967296", r"--seed must be from 0 to 2\^32 - 1, got 4294967296"),
        (random_mlps, "--share 0", "--share must be finite and positive, got 0"),
        (depth, "--depths 0", "--depths must be at least 1, got 0"),
        (trained_mlps, "--seeds -1", r"--seeds must be from 0 to 2\^32 - 1, got -1"),
        (trained_mlps, "--learning-rate nan", "--learning-rate must be finite and positive"),
        (regularised, "--weights -1", "--weights must be finite and not negative, got -1"),
        (regularised, "--weights inf", "--weights must be finite"),
        (cnns, "--nin-weights x.keras", "--nin-weights needs --nin-data"),
        (kernels, "--scale 0", "--scale must be finite and positive, got 0"),
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
        (random_mlps, "--activation", "gelu", "tanh"),
        (random_mlps, "--tests", "9", "8"),
        (trained_mlps, "--datasets", "mnist", "spambase"),
        (regularised, "--datasets", "digits", "iris"),
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
    settings = dataclasses.replace(
        regularised.PRESETS["demo"], datasets=("iris",), weights=(0.5, 0.0), seeds=(0, 1)
    )
    task = common.Task(Run(tmp_path, settings), settings, "demo", None)
    members = regularised.EXPERIMENT.members(settings)
    for accuracy, member in zip([0.5, 0.7, 0.9, 0.8], members, strict=True):
        task.run.frame_step(f"{member.folder}/compared.parquet", made_up)
        task.run.write_json(f"{member.folder}/test.json", {"accuracy": accuracy, "loss": 1.0})
    drawn = {}
    monkeypatch.setattr(
        regularised.figures, "panels", lambda x, lines, **_: drawn.update(x=x, **lines["iris"])
    )
    regularised.report(task, Progress(tuple(members), (), ())).drawings[0].draw()
    assert drawn["x"] == [0.0, 0.5]
    assert drawn["accuracy"] == pytest.approx([0.85, 0.6])
    assert drawn["error"] == pytest.approx([0.75, 0.75])


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
