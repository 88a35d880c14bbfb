"""experiments/kim2019: measures in closed form, names of adversaries, every module in small."""

import math
from pathlib import Path
from typing import get_args

import keras
import numpy as np
import pytest
from helpers.commands import usage_error
from helpers.pages import shown_claims

from experiments.kim2019 import __main__ as everything
from experiments.kim2019 import adversaries, figures, gradients, manifold, retrain, study, tilting
from experiments.kim2019.adversaries import Adversary
from experiments.kim2019.boundary import boundary_of
from tfrobust.errors import InputError, MissingFileError
from tfrobust.objectives import AdversarialTraining
from tfrobust.report import Results, Verdict

TINY = ["--filters", "2", "2", "--dense", "4", "--epochs", "1", "--training-steps", "1"]
SMALL = {
    "tilting": (
        tilting,
        ["--adversaries", "standard", "l2-0.25-xent", "--points", "60", "--epochs", "1"],
    ),
    "manifold": (
        manifold,
        [
            *TINY,
            *("--adversaries", "standard", "l2-1-xent", "--vae-examples", "100"),
            *("--vae-epochs", "1", "--attacked", "6", "--attack-steps", "2"),
            *("--searched", "3", "--search-steps", "2"),
        ],
    ),
    "gradients": (
        gradients,
        [*TINY, "--adversaries", "linf-0.1-xent", "l2-1-xent", "--measured", "20"],
    ),
    "retrain": (
        retrain,
        [
            *TINY,
            *("--adversaries", "standard", "l2-0.4-cw", "--train-examples", "200"),
            *("--attributions", "G-direction", "--fractions", "0.5", "--retrain-epochs", "1"),
        ],
    ),
}
TITLES = {
    "tilting": "Kim 2019: boundary tilting",
    "manifold": "Kim 2019: distance to the image manifold, digits",
    "gradients": "Kim 2019: loss gradients, digits",
    "retrain": "Kim 2019: ROAR and KAR, digits",
}


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_experiment_in_small(name, tmp_path, monkeypatch):
    module, overrides = SMALL[name]
    given = ["--preset", "demo", "--out", str(tmp_path / "run"), *overrides]
    page = module.main(given)
    html, judged = page.read_text(), shown_claims(page, TITLES[name])
    assert {claim["verdict"] for claim in judged} <= set(get_args(Verdict))
    assert judged
    # a second call draws the page from what is there
    for function in ("tfrobust.training.fit", "tfrobust.manifold.train"):
        monkeypatch.setattr(function, lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(module, "evaluate", lambda *_, **__: pytest.fail("computed again"))
    assert module.main(given).read_text() == html


def test_every_experiment_is_in_the_study_and_tried_here():
    folder = Path(everything.__file__).parent
    runnable = {path.stem for path in folder.glob("*.py") if "EXPERIMENT =" in path.read_text()}
    assert everything.STUDY.parts.keys() == runnable == SMALL.keys()
    for name, part in everything.STUDY.parts.items():
        assert part.experiment is SMALL[name][0].EXPERIMENT
        assert part.experiment.presets.keys() == study.SCALES.keys()


def test_gradients_take_the_classifiers_of_the_manifold(tmp_path, monkeypatch):
    # presets of one name have the same training settings, so that classifiers may be taken
    training = {f.name for f in study.TrainingSettings.__dataclass_fields__.values()}
    for preset in study.SCALES:
        shown, trained = gradients.PRESETS[preset], manifold.PRESETS[preset]
        assert set(shown.adversaries) <= set(trained.adversaries)
        assert all(getattr(shown, name) == getattr(trained, name) for name in training)
    arguments = everything.STUDY.parts["gradients"].arguments(tmp_path)
    assert list(arguments) == ["--networks", str(tmp_path / "manifold")]

    given = ["--preset", "demo", *SMALL["gradients"][1], "--adversaries", "linf-0.1-xent"]
    first = gradients.main([*given, "--out", str(tmp_path / "first")])
    monkeypatch.setattr("tfrobust.training.fit", lambda *_, **__: pytest.fail("trained again"))
    source = str(first.parent)
    second = gradients.main([*given, "--out", str(tmp_path / "second"), "--networks", source])
    tables = [page.with_name("gradients.csv").read_text() for page in (first, second)]
    tested = [
        Results.open(page.parent).read_json("linf-0.1-xent/tested.json") for page in (first, second)
    ]
    assert tables[0] == tables[1] and tested[0] == tested[1]
    with pytest.raises(MissingFileError, match="l2-9-xent"):
        gradients.main([*given, "--adversaries", "l2-9-xent", "--networks", source])


# adversaries


def test_names_of_adversaries():
    assert Adversary.of("standard") == Adversary(None, 0.0, None)
    assert Adversary.of("l2-4-xent") == Adversary("l2", 4.0, "xent")
    assert Adversary.of("linf-0.05-cw") == Adversary("linf", 0.05, "cw")
    assert Adversary.of("linf-.05-cw").family == "linf cw"
    assert adversaries.adversary_names("l2", (0.25, 1.0), "cw") == ("l2-0.25-cw", "l2-1-cw")
    for name in ("l1-1-xent", "l2-xent", "l2-0-xent", "l2-1-mse", "Standard", "l2--1-xent"):
        with pytest.raises(InputError, match="--adversaries"):
            tilting.main(["--adversaries", name])


def test_the_papers_threat_models():
    settings = retrain.PRESETS["paper"]
    assert study.threat_of(settings, "standard", steps=40) is None
    xent = study.threat_of(settings, "linf-0.02-xent", steps=40)
    assert (xent.norm, xent.epsilon, xent.step_size, xent.steps) == (math.inf, 0.02, 0.02, 40)
    assert (xent.floor, xent.random_start, xent.order) == (1e-8, None, "project_then_clip")
    assert xent.value_range == (-1.0, 1.0)
    cw = study.threat_of(settings, "l2-1.6-cw", steps=7)
    assert (cw.norm, cw.step_size, cw.objective, cw.kappa) == (2, 2.0, "carlini_wagner", 500.0)
    assert cw.rival == "not_below_zero"
    terms = adversaries.objective_of(cw).terms
    assert isinstance(terms[1], AdversarialTraining)
    assert (terms[1].mix, terms[1].mode, terms[1].stop) == (0.0, "inference", "last")
    assert len(adversaries.objective_of(None).terms) == 1


def test_the_papers_sweeps():
    names = retrain.PRESETS["paper"].adversaries
    assert len(names) == 1 + 4 * 20 and names[0] == "standard"
    assert "l2-0.08-xent" in names and "linf-0.002-cw" in names and "linf-0.04-xent" in names
    assert len(manifold.PRESETS["paper"].adversaries) == 1 + 4 * 3


def test_bad_settings(tmp_path, capsys):
    for module in (manifold, retrain):
        with pytest.raises(InputError, match="must begin with standard"):
            module.main(["--adversaries", "l2-1-xent", "standard", "--out", str(tmp_path / "a")])
    with pytest.raises(InputError, match="between 0 and 1"):
        retrain.main(["--fractions", "0.5", "1.0", "--out", str(tmp_path / "a")])
    assert "invalid choice" in usage_error(retrain.main, ["--attributions", "LRP"], capsys)
    assert not (tmp_path / "a").exists()


# measures


@pytest.mark.parametrize("angle", [0.0, 17.0, 60.0, 90.0])
def test_the_tilt_of_a_linear_boundary(angle):
    # the boundary runs along (sin, cos) of the angle to the second axis
    along = np.array([math.sin(math.radians(angle)), math.cos(math.radians(angle))])
    normal = np.array([along[1], -along[0]])
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.layers[0].set_weights(
        [np.stack([-normal, normal], axis=1).astype(np.float32), np.array([0.1, -0.1])]
    )
    boundary = boundary_of(model, points=101)
    assert boundary.angle_to(np.array([0.0, 1.0])) == pytest.approx(angle, abs=0.1)
    # z_1 - z_0 = 2 <normal, x> - 0.2 vanishes on the pieces
    middle = boundary.segments.mean(axis=1)
    np.testing.assert_allclose(middle @ normal, 0.1, atol=1e-6)
    assert np.abs(middle).max() <= 1


def test_a_network_without_boundary_has_no_tilt():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.layers[0].set_weights([np.zeros((2, 2)), np.array([0.0, 1.0])])
    assert math.isnan(boundary_of(model, points=21).angle_to(np.array([0.0, 1.0])))


def test_distance_to_the_other_class(rng):
    # class 1 on the first axis, class 0 above it; adversarials at known heights
    axis = np.column_stack([rng.uniform(-1, 1, 500), np.zeros(500)])
    up = np.array([0.0, 1.0])
    points = np.concatenate([axis + up, axis])
    labels = np.repeat([0, 1], 500)
    adversarials = np.concatenate([axis + 0.3 * up, axis + 0.5 * up])
    arrays = {"points": points, "labels": labels, "adversarials": adversarials}
    # .3 above class 1's axis, .5 below class 0's
    assert tilting.distance_to_other_class(arrays) == pytest.approx(0.4)


def test_gini_and_total_variation():
    maps = np.zeros((4, 2, 3))
    maps[0] = 5.0
    maps[1, 1, 2] = -2.0
    maps[2] = [[1, 2, 3], [4, 5, 6]]
    # mean absolute difference of all pairs over twice the mean
    values = np.arange(1, 7)
    expected = np.abs(values[:, None] - values).mean() / (2 * values.mean())
    np.testing.assert_allclose(gradients.gini(maps), [0, 5 / 6, expected, np.nan])
    # down: 3 differences of 3; across: 4 of 1; sum of values 21
    np.testing.assert_allclose(
        gradients.total_variation(maps), [0, 2 * 2 / (2 * 2), (9 + 4) / 42, np.nan]
    )
    np.testing.assert_allclose(gradients.gini(-7 * maps), gradients.gini(maps), atol=1e-12)
    np.testing.assert_allclose(
        gradients.total_variation(-7 * maps), gradients.total_variation(maps)
    )


def test_modes_on_the_papers_axis(rng):
    test = np.array([2.0, 4.0, 6.0])
    np.testing.assert_allclose(figures.on_paper_axis([2, 3, 7], test), [0, 0.25, 1.25])
    values = rng.normal(0.4, 0.02, 4000)
    assert figures.mode_of(values) == pytest.approx(0.4, abs=0.01)
    assert math.isnan(figures.mode_of(np.array([0.3, 0.3])))
