"""`tfrobust report` end to end: two small studies on digits and iris in one table, and errors."""

import dataclasses
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from helpers.nets import randomise

import reference_models
import tfrobust
from tfrobust import AdversarialTraining, CrossEntropy, ThreatModel, WeightDecay, data, saliency
from tfrobust.commands import main
from tfrobust.commands.report import records, steps, table
from tfrobust.commands.report.settings import Found, Settings, classifiers_in
from tfrobust.objectives import DoubleBackprop, InterpretationRegularization
from tfrobust.report import Run

layers = keras.layers
COUNT, EPSILON = 20, 1.6
STANDARD = CrossEntropy() + WeightDecay(5e-6)


@dataclasses.dataclass(frozen=True)
class Nothing:
    """Settings of a run."""


def adversarial(epsilon, value_range=(0.0, 1.0)):
    threat = ThreatModel(norm=2, epsilon=epsilon, steps=3, value_range=value_range)
    return CrossEntropy() + AdversarialTraining(threat)


def means(scale=0.1, seed=None):
    """A linear classifier by the distance to each class's mean, in [0, 1]."""
    train = data.load("digits", "train")
    flat = train.images.reshape(len(train), -1)
    centres = np.stack([flat[train.labels == k].mean(0) for k in range(10)])
    if seed is not None:
        centres += np.random.default_rng(seed).normal(0, 0.1, centres.shape)
    stack = [keras.Input((28, 28, 1)), layers.Flatten(), layers.Dense(10)]
    model = keras.Sequential(stack, name="means")
    model.layers[-1].set_weights([scale * centres.T, -scale / 2 * (centres**2).sum(1)])
    return model


def behind_rescaling(model):
    """The same network for pixels in [-1, 1]."""
    stack = [keras.Input((28, 28, 1)), layers.Rescaling(0.5, 0.5), *model.layers]
    return keras.Sequential(stack, name="rescaled")


def table_network(seed=0):
    stack = [keras.Input((4,)), layers.Dense(5, activation="tanh"), layers.Dense(3)]
    return randomise(keras.Sequential(stack, name="iris_mlp"), seed)


def save(path, model, train, objective, seed=0, **more):
    """As `experiments.common.train` does."""
    record = {"objective": objective.describe(), "seed": seed, **more}
    record["data"] = dataclasses.asdict(train.provenance)
    return reference_models.save(model, path / "model.keras", provenance=record)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """`first`, a run with target maps, and `second`, a study of two runs."""
    root = tmp_path_factory.mktemp("studies")
    first, images, tables = root / "first", root / "second" / "images", root / "second" / "tables"
    for folder in (first, images, tables):
        Run(folder, Nothing())
    train = data.load("digits", "train").take(50)
    teacher = means(0.1, seed=0)
    save(first / "standard/seed-0", means(), train, STANDARD)
    save(first / "at-1.5/seed-0", teacher, train, adversarial(1.5), seed=3)
    saliency.target_maps(
        first / "targets/at-1.5-smg", teacher, *train.arrays, sigma=0.15, samples=2
    )
    reference_models.save(means(), first / "random/model.keras", provenance={"row": "random"})
    (first / "standard/training").mkdir()
    means().save(first / "standard/training/model.keras")  # a checkpoint is no result
    # the same network for other pixels, trained on more of them, and a part of another one
    whole = data.joined([data.load("digits", split) for split in ("train", "validation")])
    wide = whole.rescaled(-1, 1)
    objective = adversarial(2, (-1.0, 1.0))
    save(images / "l2-2", behind_rescaling(means()), wide, objective)
    means().save(images / "encoder.keras")
    save(tables / "plain", table_network(), data.load("iris"), CrossEntropy() + DoubleBackprop(9))
    return root


def report(*arguments):
    main(["report", *map(str, arguments)])


FEW = ("--examples", COUNT, "--epsilon", EPSILON, "--steps", 3, "--restarts", 2)


@pytest.fixture(scope="module")
def reported(studies, tmp_path_factory):
    """The folder of a report of both studies."""
    out = tmp_path_factory.mktemp("reported") / "report"
    report(studies / "first", studies / "second", *FEW, "--out", out)
    return out


def rows_of(out):
    return pd.read_csv(out / "classifiers.csv").set_index("network")


def test_every_classifier_is_a_row(reported):
    rows = rows_of(reported)
    assert list(rows.index) == ["standard/seed-0", "at-1.5/seed-0", "l2-2", "plain"]
    assert list(rows["data"]) == ["digits"] * 3 + ["iris"]
    assert list(rows["run"]) == ["first", "first", "second/images", "second/tables"]
    assert list(rows["objective"]) == [
        "CrossEntropy + WeightDecay (5e-06)",
        "CrossEntropy + AdversarialTraining (l2 1.5)",
        "CrossEntropy + AdversarialTraining (l2 1)",  # of pixels in [-1, 1] it was 2
        "CrossEntropy + DoubleBackprop (9)",
    ]
    assert list(rows["seed"]) == [0, 3, 0, 0]
    assert list(rows["architecture"]) == ["means", "means", "rescaled", "iris_mlp"]
    assert (rows["violations"] == 0).all()
    assert (rows["certified_bound"] <= rows["attack_distance"]).all()


def test_the_numbers_are_those_of_the_library(reported, studies):
    row = rows_of(reported).loc["standard/seed-0"]
    test = data.load("digits", "test").take(COUNT)
    model = means()
    expected = tfrobust.benchmark(model, *test.arrays, epsilon=EPSILON, attacks=["deepfool"])
    threat = ThreatModel(norm=2, epsilon=EPSILON, steps=3, random_start="ball")
    (robust,) = tfrobust.robust_accuracy(model, test, threat, restarts=2)
    assert row["accuracy"] == expected.accuracy
    assert row["robust_accuracy_mean"] == pytest.approx(robust.mean)
    assert row["robust_accuracy_worst"] == robust.worst_case < expected.accuracy
    summary = expected.summary()
    for column, name in (
        ("certified_bound", "certified_radius"),
        ("attack_distance", "distance"),
        ("linearized_robustness", "linearized_robustness"),
        ("alignment", "alignment"),
    ):
        assert row[column] == pytest.approx(summary[f"median_{name}"], rel=1e-5), column
    kernel = model.get_weights()[0]
    norms = np.linalg.norm(kernel, axis=0)[test.labels]
    assert row["gradient_norm"] == pytest.approx(norms.mean(), rel=1e-5)


def test_the_range_of_the_pixels_does_not_matter(reported):
    rows = rows_of(reported)
    plain, rescaled = rows.loc["standard/seed-0"], rows.loc["l2-2"]
    names = [name for name in rows if isinstance(plain[name], float) and name != "cosine"]
    assert len(names) == 9
    for name in names:
        # what a bound takes off for rounding depends on the layers
        rel = 1e-3 if name == "certified_bound" else 1e-4
        assert rescaled[name] == pytest.approx(plain[name], rel=rel), name
    assert rescaled["cosine"] == pytest.approx(plain["cosine"], rel=1e-4)


def test_cosines_with_the_maps_of_the_robust_network(reported, studies):
    train = data.load("digits", "train").take(50)
    maps = saliency.TargetMaps.open(studies / "first/targets/at-1.5-smg").checked(*train.arrays)
    maps = saliency.threshold(maps[:COUNT], 1.0).reshape(COUNT, -1)
    rows = means().get_weights()[0].T[train.labels[:COUNT]]
    norms = np.linalg.norm(maps, axis=1) * np.linalg.norm(rows, axis=1)
    expected = ((maps * rows).sum(1) / norms).mean()
    found = rows_of(reported)["cosine"]
    assert found["standard/seed-0"] == pytest.approx(expected, rel=1e-4)
    assert found["standard/seed-0"] < found["at-1.5/seed-0"] < 1
    assert np.isnan(found["plain"])


def test_the_page(reported, studies):
    page = (reported / "report.html").read_text()
    assert "4 classifiers of 3 runs" in page and "in units of the pixel range" in page
    assert page.count("data:image/png;base64,") == 2
    # why a cell is empty, and what is no row
    assert "no given run has SmoothGrad maps of an adversarially trained network on iris" in page
    assert "first/random" in page and "does not say what it was trained on" in page
    assert "second/images/encoder.keras" in page and "a part of another model" in page
    assert "standard/training" not in page
    assert '<td class="verdict held">held</td>' in page
    assert {path.name for path in (reported / "figures").iterdir()} == {
        f"{name}.{suffix}" for name in ("accuracies", "distances") for suffix in ("png", "pdf")
    }


@pytest.fixture
def copy(reported, studies, tmp_path):
    """Copies of the report and of the studies."""
    shutil.copytree(reported, tmp_path / "report")
    shutil.copytree(studies, tmp_path / "studies")
    return tmp_path


def again(copy, *more):
    first, second = (copy / "studies" / name for name in ("first", "second"))
    report(first, second, *FEW, "--out", copy / "report", *more)


def counted(monkeypatch, frame=None):
    """The networks that are measured, as they are; with `frame` as their results, if given."""
    measured, original = [], steps._measured_examples

    def measure(classifier, settings):
        measured.append(classifier.found.network)
        return original(classifier, settings) if frame is None else frame

    monkeypatch.setattr(steps, "_measured_examples", measure)
    return measured


def made_up(count, **columns):
    """Results of a network that is always right."""
    numbers = (*table.DISTANCES, "alignment", "gradient_norm")
    frame = {"label": 0, "predicted": 0, "correct": True, "uncertified": "", "resisted_1": True}
    return pd.DataFrame({**frame, **dict.fromkeys(numbers, 1.0), **columns}, index=range(count))


def test_a_second_call_computes_nothing(copy, monkeypatch):
    def refuse(*_, **__):
        pytest.fail("computed again")

    monkeypatch.setattr(reference_models, "load", refuse)
    again(copy)


def test_what_a_killed_report_had_measured_is_kept(copy, monkeypatch):
    before = rows_of(copy / "report")
    frames = {path: pd.read_parquet(path) for path in copy.rglob("examples.parquet")}
    (last,) = [path for path, frame in frames.items() if frame["label"].max() == 2]  # iris
    last.unlink()
    measured = counted(monkeypatch, frames[last])
    again(copy)
    assert measured == ["plain"]
    pd.testing.assert_frame_equal(rows_of(copy / "report"), before)


def test_a_changed_network_is_measured_again(copy, monkeypatch):
    before = rows_of(copy / "report")
    folder = copy / "studies/second/tables/plain"
    save(folder, table_network(1), data.load("iris"), STANDARD)
    measured = counted(monkeypatch)
    again(copy)
    assert measured == ["plain"]
    after = rows_of(copy / "report")
    assert after.loc["plain", "sha256"] != before.loc["plain", "sha256"]
    assert after.loc["plain", "gradient_norm"] != before.loc["plain", "gradient_norm"]
    pd.testing.assert_frame_equal(after.drop("plain"), before.drop("plain"))


def test_other_settings_are_refused(copy):
    with pytest.raises(SystemExit, match=r"holds a run with epsilon = 1.6, now 0.7"):
        again(copy, "--epsilon", 0.7)


def test_maps_that_are_not_finished(copy, capsys):
    path = copy / "studies/first/targets/at-1.5-smg/maps.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "finished_rows": 0, "chunks": []}))
    again(copy)
    assert rows_of(copy / "report")["cosine"].isna().all()
    assert "holds 0 of 50 target maps" in (copy / "report/report.html").read_text()


def test_what_does_not_fit_is_left_out_and_named(tmp_path, monkeypatch):
    counted(monkeypatch, made_up(5))
    run, train, cross = tmp_path / "run", data.load("iris"), CrossEntropy()
    Run(run, Nothing())
    save(run / "good", table_network(), train, STANDARD)
    four = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
    save(run / "classes", four, train, cross)
    save(run / "shape", means(), train, cross)
    bad = table_network()
    bad.layers[0].set_weights([np.full((4, 5), np.nan), np.zeros(5)])
    save(run / "nan", bad, train, cross)
    save(run / "autoencoder", keras.Sequential([keras.Input((4,)), layers.Dense(1)]), train, cross)
    mine = dataclasses.replace(train.provenance, name="mine")
    save(run / "unknown", four, dataclasses.replace(train, provenance=mine), cross)
    other = dataclasses.replace(train.provenance, processing="not at all")
    save(run / "processing", four, dataclasses.replace(train, provenance=other), cross)
    shutil.copytree(run / "good", run / "no record")
    (run / "no record/model.keras.json").unlink()
    report(run, "--examples", 5, "--out", tmp_path / "report", "--steps", 1, "--restarts", 1)
    assert list(rows_of(tmp_path / "report").index) == ["good"]
    page = (tmp_path / "report/report.html").read_text()
    for name, reason in {
        "classes": "it has 4 classes, iris has 3",
        "shape": "it takes inputs of shape (28, 28, 1), iris has (4,)",
        "nan": "holds NaN or infinite values",
        "autoencoder": "it is no classifier: ",
        "unknown": "its data set, mine, is none of cifar10, digits, ",
        "processing": "its training data were &#39;not at all&#39;; iris is now ",
        "no record": "no provenance beside ",
    }.items():
        assert f">run/{name}</td>" in page and reason in page, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "there is no folder nowhere"),
        (("{tmp}",), "there is no run.json in .* or below it"),
        (("{tmp}/empty",), "there is no classifier in .*: none of its folders holds a model.keras"),
        (("{tmp}/damaged",), "damaged/a/model.keras cannot be loaded as a Keras model"),
        (("{tmp}/pixels",), r"the record beside pixels/a says of its pixels .* cannot be read"),
        (("{tmp}/away",), "mnist is not prepared in"),
        (("{tmp}/none",), "none of the 1 models can be measured; none/a: .* does not say what"),
        (("{studies}", "--epsilon", "30"), "--epsilon 30 for digits: epsilon 30 exceeds 28"),
        (("{studies}", "--epsilon", "nan"), "--epsilon must be a finite number of at least 0"),
        (("{studies}", "--norm", "inf", "--epsilon", "2"), "epsilon 2 exceeds 1"),
        (("{studies}", "--examples", "0"), "--examples must be at least 1, got 0"),
        (("{studies}", "--batch-size", "0"), "--batch-size must be at least 1, got 0"),
        (("{studies}", "--attack", "foo"), "model first/.*: unknown attack 'foo'"),
        (("{studies}", "--data-dir", "nowhere"), "there is no folder nowhere"),
        ((), "give one or more run folders"),
    ],
)
def test_what_a_user_can_mend(arguments, message, studies, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "benchmark", lambda *_, **__: pytest.fail("computed"))
    train = data.load("digits", "train")
    for name in ("empty", "damaged", "pixels", "away", "none"):
        if any(name in argument for argument in arguments):
            Run(tmp_path / name, Nothing())
    known = train.provenance
    if "{tmp}/damaged" in arguments:
        path = save(tmp_path / "damaged/a", means(), train, STANDARD)
        path.write_bytes(b"PK")
    if "{tmp}/pixels" in arguments:
        known = dataclasses.replace(known, processing=f"{known.processing}; rescaled to [-1, 1]")
        train = dataclasses.replace(train, provenance=known)
        save(tmp_path / "pixels/a", means(), train, STANDARD)
    if "{tmp}/away" in arguments:
        train = dataclasses.replace(train, provenance=dataclasses.replace(known, name="mnist"))
        save(tmp_path / "away/a", means(), train, STANDARD)
        arguments = (*arguments, "--data-dir", str(tmp_path))
    if "{tmp}/none" in arguments:
        reference_models.save(means(), tmp_path / "none/a/model.keras")
    given = [each.format(tmp=tmp_path, studies=studies / "first") for each in arguments]
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        report(*given, "--out", tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_medians_that_do_not_exist():
    def empty(**columns):
        found = Found("run", Path("run"), "net", Path("run/net/model.keras"))
        frame = made_up(3, **columns)
        each = table.Measured(found, {}, "iris", "", True, frame, np.nan, {"cosine": "no maps"})
        (row,) = table.table_of([each], Settings()).to_dict("records")
        return row, each.empty

    row, reasons = empty(alignment=np.nan, linearized_robustness=np.inf)
    assert np.isnan(row["alignment"]) and np.isinf(row["linearized_robustness"])
    reason = "its gradient is zero at every correctly classified example"
    assert reasons == {"cosine": "no maps", "α": reason}
    row, reasons = empty(correct=False)
    assert row["accuracy"] == 0 and np.isnan(row["attack_distance"])
    assert reasons["all medians"] == "no example is classified correctly"


def test_an_epsilon_that_is_too_large_for_points(tmp_path):
    points = data.kim_toy(seed=2, count=100)
    model = randomise(keras.Sequential([keras.Input((2,)), layers.Dense(2)]), 0)
    Run(tmp_path / "run", Nothing())
    save(tmp_path / "run/a", model, points, CrossEntropy())
    report(
        tmp_path / "run",
        "--examples",
        9,
        "--epsilon",
        3,
        "--norm",
        "inf",
        "--out",
        tmp_path / "report",
    )
    row = rows_of(tmp_path / "report").iloc[0]
    test = data.kim_toy("test", seed=2, count=100).take(9)
    predicted = tfrobust.predict_logits(model, test.images).argmax(1)
    assert row["accuracy"] == np.mean(predicted == test.labels)
    assert np.isnan(row["robust_accuracy_mean"]) and np.isnan(row["robust_accuracy_worst"])
    page = (tmp_path / "report/report.html").read_text()
    assert "epsilon 3 exceeds 2, the widest distance there" in page


def test_runs_of_one_name_and_runs_given_twice(studies, tmp_path):
    shutil.copytree(studies / "first", tmp_path / "other/first")
    twice, _ = classifiers_in([str(studies), str(studies / "first")])
    assert len(twice) == 5 and len({each.path for each in twice}) == 5
    both, _ = classifiers_in([str(studies / "first"), str(tmp_path / "other/first")])
    assert {each.run for each in both} == {f"{studies.name}/first", "other/first"}


def test_objectives_in_words():
    def words(objective, is_table=False):
        return table.words_of({"objective": objective.describe()}, is_table=is_table)

    ir = InterpretationRegularization(3.0, 0.15)
    assert words(CrossEntropy() + ir) == "CrossEntropy + InterpretationRegularization (3, 0.15)"
    assert words(CrossEntropy(0.5) + WeightDecay(0.1)) == "CrossEntropy (0.5) + WeightDecay (0.1)"
    threat = ThreatModel(norm=np.inf, epsilon=0.2, value_range=(-1, 1))
    # as it is read from the file
    record = json.loads(
        json.dumps({"objective": (CrossEntropy() + AdversarialTraining(threat)).describe()})
    )
    assert table.words_of(record, is_table=False).endswith("AdversarialTraining (linf 0.1)")
    assert table.words_of(record, is_table=True).endswith("AdversarialTraining (linf 0.2)")
    named = CrossEntropy() + CrossEntropy(2.0).named("second")
    assert words(named) == "CrossEntropy + CrossEntropy (2)"
    assert words(CrossEntropy() + DoubleBackprop(1000)) == "CrossEntropy + DoubleBackprop (1000)"
    kinds = [{"objective": o.describe()} for o in (STANDARD, adversarial(1), named)]
    assert [table.kind_of(each) for each in kinds] == [
        "standard",
        "AdversarialTraining",
        "standard",
    ]
    assert table.kind_of({}) == "not recorded" and table.words_of({}, is_table=False) == ""


def test_pixels_by_their_record():
    of = records.Pixels.of
    assert of("divided by 255", "a") == records.Pixels("divided by 255", None, None)
    text = "a; rescaled from (0, 1) to (-0.5, 2.5e-05)"
    assert of(text, "a") == records.Pixels("a", (0.0, 1.0), (-0.5, 2.5e-5))
    for text in ("a; rescaled from (0, 1) to (x, 1)", "a; rescaled", "a; rescaled from (0, 1) to "):
        with pytest.raises(ValueError, match=r"beside net says of its pixels .* cannot be read"):
            of(text, "net")
    wide = data.load("digits", "test").rescaled(-1, 1)
    with pytest.raises(ValueError, match="cannot be read"):  # once, as the studies do
        of(wide.rescaled(0, 2).provenance.processing, "net")


def test_the_data_sets_are_those_of_the_library():
    with pytest.raises(ValueError, match="unknown data set") as error:
        data.load("x")
    known = str(error.value).split("there are ")[1].split(", ")
    assert set(records.NAMES) == set(known) - {"imagenet"}
