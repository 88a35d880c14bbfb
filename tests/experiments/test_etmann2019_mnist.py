"""The MNIST experiment end to end on a few digits, and its claims on made-up cohorts."""

import contextlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from helpers.commands import usage_error
from helpers.dask_cluster import DaskCluster
from helpers.ports import refusing_address
from helpers.seals import reseal
from helpers.small_cohort import ARGUMENTS, assert_same_cohort

from experiments.common.command_line import parse
from experiments.etmann2019 import claims, mnist, published
from experiments.etmann2019.results import CohortError, Member, read
from tfrobust.commands import run
from tfrobust.errors import InputError
from tfrobust.report import Results, Run

SLOW = ("attack-basic_iterative.parquet", "attack-carlini_wagner.parquet")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    mnist.main([*ARGUMENTS, "--out", str(folder)])
    return folder


def test_the_folder_holds_everything(finished):
    for name in ("lambda-10", "lambda-30000"):
        place = finished / "models" / name
        for file in ("model.keras", "model.keras.json", "history.json", "summary.json"):
            assert (place / file).is_file(), file
        for attack in ("gradient", "basic_iterative", "carlini_wagner"):
            assert len(pd.read_parquet(place / f"attack-{attack}.parquet")) == 12
        assert len(pd.read_parquet(place / "alignment.parquet")) == 12
    for number in range(3, 11):
        assert (finished / "figures" / f"figure{number}.png").is_file()
    record = json.loads((finished / "run.json").read_text())
    assert record["settings"]["lambdas"] == [10.0, 30000.0]
    assert record["settings"]["seed"] == 0
    assert "tensorflow" in record["versions"]


def test_the_page_tells_the_truth_about_itself(finished):
    html = (finished / "report.html").read_text()
    assert "not the study" in html
    assert "12 test images" in html
    assert html.count("<img") == 8
    assert "not tested" in html  # two models are too few for a rank correlation
    verdicts = {claim["verdict"] for claim in json.loads((finished / "claims.json").read_text())}
    assert "held" in verdicts


def test_a_second_run_makes_the_lost_step_alike_and_reuses_the_others(finished):
    path = finished / "models" / "lambda-10" / "attack-gradient.parquet"
    table = pd.read_parquet(path)
    path.unlink()
    files = [path for path in (finished / "models").rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    mnist.main([*ARGUMENTS, "--out", str(finished)])
    assert {path: path.stat().st_mtime_ns for path in files} == before
    pd.testing.assert_frame_equal(pd.read_parquet(path), table, rtol=1e-4)


@pytest.mark.slow  # a cluster is started in tests/distribution
def test_a_cluster_writes_one_run(finished, tmp_path):
    folder = tmp_path / "run"
    # Foolbox's attacks take longest, and are the same for the same weights
    kept = (
        "models",
        "lambda-10",
        "lambda-30000",
        "run.json",
        *(f"attack-{a}.parquet" for a in SLOW),
    )
    shutil.copytree(
        finished, folder, ignore=lambda _, names: [name for name in names if name not in kept]
    )
    with DaskCluster(2) as cluster:
        mnist.main([*ARGUMENTS, "--out", str(folder), "--scheduler", cluster.address])
    assert_same_cohort(finished, folder)
    assert (folder / "report.html").is_file()


def test_folders_that_hold_no_finished_cohort(finished, tmp_path):
    with pytest.raises(CohortError, match="holds no run of a cohort"):
        read(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"lambdas": [10.0]}}))
    (tmp_path / "cohort.json").write_text(
        json.dumps(
            {
                "name": "digits",
                "lead": "x",
                "members": [{"name": "lambda 10", "folder": "m", "settings": {"lambda": 10.0}}],
            }
        )
    )
    np.savez(tmp_path / "pictures.npz", pictures=read(finished).pictures)
    with pytest.raises(CohortError, match=r"is not finished \(lambda 10\). Run it again"):
        read(tmp_path)


def test_an_attack_on_fewer_images_is_padded(finished):
    member = read(finished).members[0]
    few = {"gradient": member.distances["gradient"].head(4)}
    shorter = Member(member.settings, member.summary, member.alignment, few, member.gradients)
    distance = shorter.distance("gradient")
    assert len(distance) == len(member.alignment)
    np.testing.assert_array_equal(distance[:4], member.distance("gradient")[:4])
    assert np.isnan(distance[4:]).all()
    assert isinstance(shorter.alignment, pd.DataFrame)


def test_a_model_that_diverges_is_named_and_the_other_is_shown(finished, tmp_path):
    shutil.copytree(finished / "models" / "lambda-10", tmp_path / "models" / "lambda-10")
    arguments = [*ARGUMENTS, "--lambdas", "1e30", "10", "--out", str(tmp_path)]
    settings = parse(mnist.PRESETS, "", arguments, about=mnist.EXPERIMENT.about).settings
    with contextlib.closing(Run(tmp_path, settings)) as new:
        reseal(Results.open(finished), new, "models/lambda-10")
    html = mnist.main(arguments).read_text()
    row = html.split('<td class="word">lambda 1e+30</td>')[1].split("</tr>")[0]
    assert "failed" in row
    assert "NonFiniteLossError" in row and "epoch 1, step" in row
    models = pd.read_csv(tmp_path / "models.csv")
    assert list(models["λ"]) == [10]
    assert np.isfinite(models["Carlini-Wagner l2"]).all()
    assert html.count("<img") == 8
    bounds = [c for c in json.loads((tmp_path / "claims.json").read_text()) if "eq." in c["source"]]
    assert [claim["verdict"] for claim in bounds] == ["held"] * 3
    assert [member.weight for member in read(tmp_path).members] == [10.0]
    # not finished, and not failed any more: nothing to draw beside ImageNet's half yet
    (tmp_path / "models" / "lambda-1e+30" / "failure.json").unlink()
    with pytest.raises(CohortError, match=r"is not finished \(lambda 1e\+30\)"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--lambdas", "--lambdas needs at least one value"),
        ("--lambdas 10 10", "--lambdas holds 10 more than once"),
        ("--lambdas nan", "--lambdas must be finite and not negative"),
        ("--epochs 0", "--epochs must be at least 1, got 0"),
        ("--learning-rate -1", "--learning-rate must be finite and positive, got -1"),
    ],
)
def test_settings_that_make_no_sense_leave_nothing_behind(given, message, tmp_path):
    with pytest.raises(InputError, match=f"^{message}"):
        mnist.main(["--preset", "demo", "--out", str(tmp_path / "run"), *given.split()])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", ["--penalty-scale mean", "--dataset iris"])
def test_an_unknown_choice(given, tmp_path, capsys):
    arguments = ["--preset", "demo", "--out", tmp_path / "run", *given.split()]
    assert given.split()[0] in usage_error(mnist.main, arguments, capsys)
    assert not (tmp_path / "run").exists()


def test_an_unknown_preset(capsys):
    assert "demo, reduced, paper" in usage_error(mnist.main, ["--preset", "papr"], capsys)


def test_an_unknown_setting(capsys):
    assert "--epochs" in usage_error(mnist.main, ["--epoch", "3"], capsys)


def test_an_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to the folder"):
        mnist.main([*ARGUMENTS, "--out", str(tmp_path / "file" / "run")])


def test_errors_that_a_user_can_mend_are_one_line(tmp_path):
    arguments = ["--dataset", "mnist", "--data-dir", str(tmp_path), "--out", str(tmp_path / "r")]
    with pytest.raises(SystemExit, match=r"^error: mnist is not prepared in .*Either let"):
        run(lambda: mnist.main([*ARGUMENTS, *arguments]))
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


def test_errors_about_a_scheduler_are_one_line(tmp_path):
    with refusing_address() as address, pytest.MonkeyPatch.context() as patch:
        arguments = [*ARGUMENTS, "--out", str(tmp_path), "--scheduler", f"tcp://{address}"]
        patch.setattr("experiments.common.experiment.TIMEOUT", 1.0)
        with pytest.raises(SystemExit) as stop:
            run(lambda: mnist.main(arguments))
    assert str(stop.value).startswith("error: no Dask scheduler answers at tcp://127.0.0.1:")
    with pytest.raises(InputError, match="--scheduler gives each classifier to one worker"):
        mnist.main([*arguments, "--strategy", "mirrored"])


def test_the_paper_preset_is_the_papers():
    settings = mnist.PRESETS["paper"]
    assert len(settings.lambdas) == 16
    assert (settings.lambdas[0], settings.lambdas[-1]) == (10, 180_000)
    ratios = np.diff(np.log(settings.lambdas))
    np.testing.assert_allclose(ratios, ratios.mean(), rtol=0.02)
    assert (settings.epochs, settings.batch_size, settings.epochs_per_decay) == (200, 100, 80)
    assert settings.evaluated == 1000
    assert settings.carlini_wagner_steps == 1000
    assert settings.penalty_scale == "batch_mean"
    reduced = mnist.PRESETS["reduced"]
    assert len(reduced.lambdas) >= 8
    assert reduced.epochs >= 10
    assert (reduced.lambdas[0], reduced.lambdas[-1]) == (10, 180_000)
    assert published.lambdas(8) == reduced.lambdas


def cohort(robustness, alignment, accuracy=0.9, noise=0.0, seed=0):
    """Members whose medians are given, with images scattered about them."""
    rng = np.random.default_rng(seed)
    members = []
    for place, (rho, alpha) in enumerate(zip(robustness, alignment, strict=True)):
        spread = rng.uniform(0.5, 1.5, 50)
        table = pd.DataFrame(
            {
                "linearized_robustness": rho * spread,
                "alignment": alpha * spread,
                "theorem2_binarized": rho * spread * 1.1,
                "theorem2": rho * spread * 1.2,
                "theorem3": rho * spread * 1.3,
            }
        )
        distance = pd.DataFrame({"distance": rho * spread * np.exp(noise * rng.normal(size=50))})
        attacks = ("gradient", "basic_iterative", "carlini_wagner")
        summary = {
            "classes": 10,
            "test_accuracy": accuracy,
            "median_alignment": alpha,
            "median_linearized_robustness": rho,
            **{f"median_{attack}": rho for attack in attacks},
        }
        members.append(
            Member(
                {"lambda": 10.0**place},
                summary,
                table,
                dict.fromkeys(attacks, distance),
                np.zeros((1, 1)),
            )
        )
    return members


def verdicts(members):
    return {claim.statement: claim.verdict for claim in claims.judge(members, saturates=True)}


GROWS = "Median alignment grows with median robustness (linearized robustness)"
SATURATES = "On MNIST alignment saturates: it stops growing for the most robust models"
PREDICTS = "Linearized robustness predicts the Carlini-Wagner distance image by image"
POINTWISE = "Within a model, images with larger linearized robustness are better aligned"


def test_a_cohort_as_the_paper_has_it():
    robustness = np.linspace(0.5, 2, 8)
    members = cohort(robustness, 3 * (1 - np.exp(-3 * robustness)))
    assert set(verdicts(members).values()) == {"held"}


def test_claims_can_fail():
    robustness = np.linspace(0.5, 2, 8)
    falling = verdicts(cohort(robustness, 3 - robustness))
    assert falling[GROWS] == "not held"
    growing = verdicts(cohort(robustness, robustness**2))
    assert growing[GROWS] == "held"
    assert growing[SATURATES] == "not held"
    assert verdicts(cohort(robustness, robustness, noise=3.0))[PREDICTS] == "not held"
    scattered = cohort(robustness, robustness)
    scattered[3].alignment["alignment"] = (
        scattered[3].alignment["alignment"].max() - (scattered[3].alignment["alignment"])
    )
    assert verdicts(scattered)[POINTWISE] == "not held"


def test_a_broken_bound_is_counted():
    members = cohort(np.linspace(0.5, 2, 8), np.linspace(1, 2, 8))
    members[2].alignment.loc[7, "theorem3"] = 0.0
    claim = claims.judge(members, saturates=True)[-1]
    assert claim.verdict == "not held"
    assert claim.figure.startswith("1 violations in 400 images")


def test_degenerate_models_do_not_count_for_medians():
    members = cohort(np.linspace(0.5, 2, 8), np.linspace(1, 2, 8), accuracy=0.2)
    assert verdicts(members)[GROWS] == "not tested"
    bound = "Theorem 2, eq. (15): the right-hand side bounds linearized robustness"
    assert verdicts(members)[bound] == "held"
