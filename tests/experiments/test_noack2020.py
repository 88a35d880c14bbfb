"""experiments/noack2020: names of rows, settings of the paper, every module in small."""

import math
from pathlib import Path
from typing import get_args

import h5py
import numpy as np
import pytest
from helpers.pages import shown_claims

from experiments.noack2020 import __main__ as everything
from experiments.noack2020 import cifar10, mnist, permutation, search, study
from experiments.noack2020.published import TABLE1, TABLE2
from experiments.noack2020.rows import Attack, Row, as_number
from experiments.noack2020.selection import BestEpoch
from experiments.noack2020.targets import teacher_of
from reference_models import ModelFileError
from tfrobust import data
from tfrobust.errors import InputError, MissingFileError
from tfrobust.objectives import (
    AdversarialTraining,
    InterpretationRegularization,
    JacobianRegularization,
)
from tfrobust.report import Run, Verdict

TINY = [
    *("--filters", "2", "2", "--dense", "4", "--epochs", "2", "--training-steps", "1"),
    *("--train-examples", "150", "--test-examples", "12", "--samples", "2"),
    *("--attack-steps", "2", "--restarts", "1", "--jacobians", "10", "--floors", "none"),
]
SMALL = {
    "mnist": (
        mnist,
        [*TINY, "--rows", "at-0.7", "jr", "ir-r-smg-perm", "ir-random-simp", "--attacks", "l2-1.5"],
    ),
    "permutation": (permutation, [*TINY, "--probabilities", "0", "1", "--attacks", "linf-0.1"]),
    "search": (
        search,
        [*TINY, "--magnitudes", "0.1", "--jacobian-weights", "0.1", "--attacked-examples", "10"],
    ),
    "cifar10": (cifar10, [*TINY, "--rows", "at-80/255", "ir-r-simp", "--attacks", "linf-8/255"]),
}
TITLES = {
    "mnist": "Noack 2020: Table 1, digits",
    "permutation": "Noack 2020: permuted target maps, digits",
    "search": "Noack 2020: weights of the penalties, digits",
    "cifar10": "Noack 2020: Table 2, digits",
}


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_experiment_in_small(name, tmp_path, monkeypatch):
    module, overrides = SMALL[name]
    given = ["--preset", "demo", "--out", str(tmp_path / "run"), *overrides]
    page = module.main(given)
    html, judged = page.read_text(), shown_claims(page, TITLES[name])
    assert {claim["verdict"] for claim in judged} <= set(get_args(Verdict))
    assert "Missing from this page" not in html
    # a second call draws the page from what is there
    for function in ("tfrobust.training.fit", "tfrobust.saliency.stored.smoothed_maps"):
        monkeypatch.setattr(function, lambda *_, **__: pytest.fail("computed again"))
    for function in ("attacked", "tested", "measured"):
        target = f"experiments.noack2020.evaluation.{function}"
        monkeypatch.setattr(target, lambda *_, **__: pytest.fail("computed again"))
    assert module.main(given).read_text() == html


def test_every_experiment_is_in_the_study_and_tried_here():
    folder = Path(everything.__file__).parent
    runnable = {path.stem for path in folder.glob("*.py") if "EXPERIMENT =" in path.read_text()}
    assert everything.STUDY.parts.keys() == runnable == SMALL.keys()
    for name, part in everything.STUDY.parts.items():
        assert part.experiment is SMALL[name][0].EXPERIMENT
        assert part.experiment.presets.keys() == study.SCALES.keys()
    # presets of one name have the same training settings, so that the robust network may be taken
    training = study.TrainingSettings.__dataclass_fields__.keys() - {"seeds"}
    for preset in study.SCALES:
        for other in (permutation, search):
            ours, theirs = other.PRESETS[preset], mnist.PRESETS[preset]
            assert all(getattr(ours, name) == getattr(theirs, name) for name in training)
            assert ours.seeds[0] == theirs.seeds[0]


def test_the_robust_network_is_taken_from_another_run(tmp_path, monkeypatch):
    given = ["--preset", "demo", *SMALL["permutation"][1]]
    first = permutation.main([*given, "--out", str(tmp_path / "first")])
    said = []
    monkeypatch.setattr("experiments.noack2020.teachers.say", said.append)
    second = permutation.main(
        [*given, "--out", str(tmp_path / "second"), "--teachers", str(first.parent)]
    )
    assert said == [f"at-0.7: copied from {first.parent / 'at-0.7/seed-0'}"]
    assert (first.parent / "networks.csv").read_text() == (
        second.parent / "networks.csv"
    ).read_text()
    with pytest.raises(MissingFileError, match=r"has no at-0[.]7/seed-0"):
        permutation.main([*given, "--out", str(tmp_path / "third"), "--teachers", str(tmp_path)])


# rows and attacks


def test_names_of_rows():
    assert Row.of("standard").kind == "standard"
    assert (Row.of("at-1.5").norm, Row.of("at-1.5").epsilon) == (2, 1.5)
    assert Row.of("at-linf-0.3").norm == math.inf
    assert Row.of("at-80/255").epsilon == pytest.approx(0.3137, abs=1e-4)
    row = Row.of("ir-r-smg-perm")
    assert (row.teacher, row.method, row.permuted) == ("r", "smg", True)
    assert row.label == "IR (R, perm, SmG)"
    assert Row.of("ir-at-linf-0.3-simp").teacher == "at-linf-0.3"
    assert teacher_of(mnist.PRESETS["paper"], Row.of("ir-nr-simp")) == "standard"
    for name in (*TABLE1, *(row for group in TABLE2.values() for row in group)):
        assert Row.of(name).name == name
    for name in ("at", "at-0", "at-1/0", "ir-r", "ir-x-smg", "ir-r-smg-permuted", "JR", "random"):
        with pytest.raises(InputError, match="--rows"):
            mnist.main(["--preset", "demo", "--rows", "at-0.7", name])


def test_a_row_needs_its_teacher():
    with pytest.raises(InputError, match="but not its teacher standard"):
        mnist.main(["--preset", "demo", "--rows", "at-0.7", "ir-nr-simp"])
    with pytest.raises(InputError, match=r"lacks the robust network at-0[.]7"):
        mnist.main(["--preset", "demo", "--rows", "standard", "jr"])
    with pytest.raises(InputError, match="lacks at-320/255"):
        cifar10.main(["--preset", "paper", "--rows", "standard", "at-80/255"])


def test_members_begin_with_the_robust_network():
    names = [member.settings["row"] for member in mnist.EXPERIMENT.members(mnist.PRESETS["paper"])]
    assert names[:3] == ["at-1.5"] * 3
    assert set(names[3:12]) == {"standard", "at-2.5", "at-linf-0.3"}
    reduced = mnist.EXPERIMENT.members(mnist.PRESETS["reduced"])
    count = {name: sum(m.settings["row"] == name for m in reduced) for name in TABLE1}
    assert count == {name: 1 if name.startswith("at-") else 3 for name in TABLE1}


def test_groups_of_table_2():
    settings = cifar10.PRESETS["paper"]
    members = cifar10.EXPERIMENT.members(settings)
    folders = [member.folder for member in members]
    assert len(set(folders)) == len(folders) == 12
    by_group = {
        radius: [m.settings["row"] for m in members if m.folder.startswith(f"group-{place}/")]
        for radius, place in (("320/255", "320_of_255"), ("80/255", "80_of_255"))
    }
    for radius, rows in by_group.items():
        assert {f"at-{radius}", *rows} == set(TABLE2[radius])
    inside = cifar10._in_group(settings, ("320/255", 0.02, 0.1))
    assert (inside.robust, inside.lambda_m, inside.lambda_j) == ("at-320/255", 0.02, 0.1)


def test_the_papers_objectives():
    settings = mnist.PRESETS["paper"]
    _, decay, adversarial = study.objective_of(settings, Row.of("at-2.5")).terms
    assert decay.weight == 5e-6
    assert isinstance(adversarial, AdversarialTraining)
    assert (adversarial.mode, adversarial.update_statistics) == ("training", True)
    threat = adversarial.threat
    assert (threat.norm, threat.epsilon, threat.step_size, threat.steps) == (2, 2.5, 1.2, 40)
    assert (threat.random_start, threat.order) == ("image", "clip_then_project")
    assert threat.floor == pytest.approx(5e-5)  # 1e-6 of the mean over 50 images
    *_, jacobian = study.objective_of(settings, Row.of("jr")).terms
    assert jacobian == JacobianRegularization(0.32, projections=1, form="half_square")
    *_, interpretation = study.objective_of(settings, Row.of("ir-r-smg")).terms
    assert interpretation == InterpretationRegularization(3.0, 0.15, norm_scale="batch")
    after = study.objective_of(cifar10.PRESETS["paper"], Row.of("ir-r-smg")).terms[-1]
    assert after.threshold == 1.0
    *_, weak = study.objective_of(cifar10.PRESETS["paper"], Row.of("at-80/255")).terms
    assert weak.threat.step_size == 0.1


def test_the_papers_attacks():
    settings = mnist.PRESETS["paper"]
    attack = Attack.of("linf-0.25")
    threat = attack.threat(steps=40, step_size=settings.step_size(attack.name), floor=0.0)
    assert (threat.norm, threat.epsilon, threat.random_start) == (math.inf, 0.25, "ball")
    assert threat.step_size is None  # 2.5 * epsilon / steps
    assert settings.step_size("l2-1.5") == 0.5
    assert cifar10.PRESETS["paper"].step_size("linf-8/255") == pytest.approx(2 / 255)
    assert as_number("320/255") == pytest.approx(1.2549, abs=1e-4)


# the epoch that is kept


def test_the_best_epoch_of_the_second_half_is_kept(tmp_path):
    test = data.load("digits", "test").take(20)
    model = study.network(mnist.PRESETS["demo"], (28, 28, 1), 10)
    run = Run(tmp_path, mnist.PRESETS["demo"])
    best = BestEpoch(run, "network", 6, test)
    accuracies = [0.99, 0.9, 0.5, 0.7, 0.8, 0.8]
    kept = None
    for number, accuracy in enumerate(accuracies, 1):
        weights = [np.full_like(value, number) for value in model.get_weights()]
        model.set_weights(weights)
        record = {"epoch": number, "validation_accuracy": accuracy, "validation_loss": 1.0}
        best(record, model)
        # a run that was killed calls it again for the last finished epoch
        BestEpoch(run, "network", 6, test)(record, model)
        kept = weights if number == 5 else kept
    assert [epoch["epoch"] for epoch in best.record()["epochs"]] == [4, 5, 6]
    assert best.chosen()["validation"]["epoch"] == 5  # the earlier of equal ones
    best.restore(model)
    for value, expected in zip(model.get_weights(), kept, strict=True):
        np.testing.assert_array_equal(value, expected)
    # weights of other values than those that were written
    with h5py.File(tmp_path / "network" / "best.weights.h5", "r+") as file:
        file["layers/dense/vars/1"][0] += 1
    with pytest.raises(ModelFileError, match="is damaged"):
        best.restore(model)
