"""`tfrobust evaluate` end to end, on linear models whose robust accuracy has a closed form."""

import json
import re

import keras
import numpy as np
import pandas as pd
import pytest
from helpers.commands import tfrobust as tfrobust_process
from helpers.nets import randomise
from helpers.pictures import encoded, smooth

import tfrobust
from tfrobust import commands, data
from tfrobust.commands.evaluate import settings, steps
from tfrobust.commands.evaluate.summary import text
from tfrobust.report import Results

layers = keras.layers
COUNT, EPSILON = 40, 0.8


def evaluate(*arguments):
    commands.main(["evaluate", *map(str, arguments)])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A .keras file: a linear classifier by the distance to each class's mean."""
    train = data.load("digits", "train")
    flat = train.images.reshape(len(train), -1)
    means = np.stack([flat[train.labels == k].mean(0) for k in range(10)])
    network = keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten(), layers.Dense(10)])
    network.layers[-1].set_weights([0.2 * means.T, -0.1 * (means**2).sum(1)])
    path = tmp_path_factory.mktemp("model") / "means.keras"
    network.save(path)
    return path


@pytest.fixture(scope="module")
def exact(model):
    """Distance of each example to the next class; 0 where it is misclassified."""
    test = data.load("digits", "test").take(COUNT)
    kernel, bias = (w.astype(float) for w in keras.saving.load_model(model).get_weights())
    logits = test.images.reshape(COUNT, -1).astype(float) @ kernel + bias
    distance = np.full((COUNT, 10), np.inf)
    for row, label in enumerate(test.labels):
        for other in set(range(10)) - {label}:
            gap = np.linalg.norm(kernel[:, label] - kernel[:, other])
            distance[row, other] = (logits[row, label] - logits[row, other]) / gap
    return np.maximum(distance.min(axis=1), 0)


def options(model, *more):
    return (model, "--data", "digits", "--limit", COUNT, "--epsilon", EPSILON, *more)


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    """The run folder with the page of the linear model."""
    out = tmp_path_factory.mktemp("run")
    evaluate(*options(model, "--attacks", "deepfool", "gradient", "--out", out))
    return out


def test_the_accuracies_of_a_linear_model(run, exact):
    summary = json.loads((run / "summary.json").read_text())
    right = exact > 0
    assert summary["accuracy"] == right.mean()
    # pixels end at 0 and 1, so that an attack may need more than the closed form, never less; the
    # certificate is less what is taken off for rounding
    assert np.mean(exact > EPSILON + 0.05) <= summary["certified_accuracy"]
    assert summary["certified_accuracy"] <= np.mean(exact > EPSILON) <= summary["robust_accuracy"]
    table = pd.read_parquet(run / "examples.parquet")
    assert (table["distance"][right] >= exact[right] * (1 - 1e-5)).all()
    np.testing.assert_allclose(table["certified_radius"][right], exact[right], atol=0.05)
    assert (table["certified_radius"][right] <= exact[right]).all()
    share = np.mean(table["correct"] & (table["distance"] > EPSILON))
    assert summary["robust_accuracy"] == share < 1
    assert summary["median_certified_radius"] == pytest.approx(np.median(exact[right]), abs=0.05)
    assert summary["attacks"] == ["deepfool", "gradient"]


def test_the_keys_of_the_json_are_those_that_are_documented(run):
    documented = re.search(r"Benchmark`: (.*)\. An infinite", settings.__doc__, re.DOTALL)
    keys = list(json.loads((run / "summary.json").read_text()))
    # and the digest of the settings in a run folder
    assert keys == [*re.split(r",\s+", documented[1]), "tfrobust"]


def test_the_page(run):
    page = (run / "report.html").read_text()
    assert "means on 40 examples of digits, test split" in page
    rows = dict(re.findall(r"<tr><td[^>]*>([^<]*)</td><td[^>]*>([^<]*)</td><td", page))
    summary = json.loads((run / "summary.json").read_text())
    assert rows["accuracy"] == f"{100 * summary['accuracy']:.1f} %"
    assert rows["robust accuracy, at most"] == f"{100 * summary['robust_accuracy']:.1f} %"
    assert rows["robust accuracy, at least"] == f"{100 * summary['certified_accuracy']:.1f} %"
    assert rows["median smallest perturbation"] == f"{summary['median_distance']:.4g}"
    assert page.count("data:image/png;base64,") == 1


@pytest.mark.slow  # two other commands are started as processes in the usual tests
def test_the_command_as_users_start_it(run, model, tmp_path):
    """Another process computes the same, and writes nothing but JSON to stdout, no noise."""
    more = ("--attacks", "deepfool", "gradient", "--json")
    done = tfrobust_process("evaluate", *options(model, *more))
    assert (done.returncode, done.stderr) == (0, "")
    summary, expected = json.loads(done.stdout), Results.open(run).read_json("summary.json")
    assert summary.keys() == expected.keys()
    for name, value in expected.items():
        exactly = not isinstance(value, float)
        assert summary[name] == (value if exactly else pytest.approx(value, rel=1e-3)), name


def test_a_second_call_computes_nothing(run, model, monkeypatch, capsys):
    monkeypatch.setattr(steps, "benchmark", lambda *_, **__: pytest.fail("computed again"))
    more = ("--attacks", "deepfool", "gradient", "--out", run)
    evaluate(*options(model, *more, "--json"))
    assert json.loads(capsys.readouterr().out) == Results.open(run).read_json("summary.json")
    with pytest.raises(SystemExit, match=r"holds a run with epsilon = 0.8, now 0.9"):
        evaluate(*options(model, *more), "--epsilon", 0.9)


def test_infinite_and_undefined_numbers_are_json(tmp_path, capsys):
    """A network without certificates, whose class no attack changes."""
    stack = [layers.Flatten(), layers.LayerNormalization(), layers.Dense(10)]
    network = keras.Sequential([keras.Input((28, 28, 1)), *stack])
    network.layers[-1].set_weights([np.zeros((784, 10)), np.eye(10)[0]])
    network.save(tmp_path / "constant.keras")
    path = tmp_path / "constant.keras"
    few = ("--data", "digits", "--limit", 20, "--epsilon", 1, "--attacks", "gradient")
    evaluate(path, *few, "--json")

    def refused(constant):
        raise AssertionError(f"{constant} is no JSON")

    summary = json.loads(capsys.readouterr().out, parse_constant=refused)
    assert summary["accuracy"] == summary["robust_accuracy"] > 0
    assert summary["median_distance"] == "inf"
    assert summary["certified_accuracy"] is None
    assert "has no certified rule" in summary["uncertified"]
    shown = text(summary)
    assert re.search(r"robust accuracy, at least +- ", shown)
    assert re.search(r"median smallest perturbation +inf ", shown)
    assert "\nNo certificates: layer" in shown


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three classes of four pictures each, one of them corrupt, and a model for them."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        (folder / "val" / name).mkdir(parents=True)
        for k in range(4):
            image = encoded(smooth(rng, 12, 12), "PNG")
            (folder / "val" / name / f"{k}.png").write_bytes(image)
    (folder / "val" / "bee" / "1.png").write_bytes(b"\x89PNG")
    stack = [layers.Flatten(), layers.Dense(3)]
    network = randomise(keras.Sequential([keras.Input((8, 8, 3)), *stack]), 0)
    network.save(folder / "three.keras")
    return folder


UNIT = ("--preprocessing", "unit", "--epsilon", 0.1, "--attacks", "gradient")


def test_a_folder_of_labelled_images(pictures, tmp_path, capsys):
    evaluate(pictures / "three.keras", "--images", pictures / "val", *UNIT, "--out", tmp_path)
    shown = capsys.readouterr()
    assert "warning: " in shown.err and "1.png is corrupt" in shown.err
    table = pd.read_parquet(tmp_path / "examples.parquet")
    assert table["label"].tolist() == [0] * 4 + [1] * 3 + [2] * 4
    files = sorted((pictures / "val").rglob("*.png"))
    files.remove(pictures / "val" / "bee" / "1.png")
    images, _ = data.read_images(files, size=(8, 8))
    network = keras.saving.load_model(pictures / "three.keras")
    expected = network.predict(images / 255, verbose=0).argmax(1)
    assert table["predicted"].tolist() == expected.tolist()
    alone = tfrobust.minimal(network, images / 255, "gradient", labels=table["label"].to_numpy())
    np.testing.assert_allclose(table["distance"], alone.distance, rtol=1e-3)
    page = (tmp_path / "report.html").read_text()
    assert "three on 11 examples of 3 classes in" in page and ">bee/0.png</td>" in page


def test_a_limit_takes_images_of_every_class(pictures, tmp_path):
    evaluate(
        *(pictures / "three.keras", "--images", pictures / "val", *UNIT),
        *("--out", tmp_path, "--limit", 3),
    )
    assert pd.read_parquet(tmp_path / "examples.parquet")["label"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "either --data NAME or --images FOLDER"),
        (("--data", "digits", "--images", "."), "either --data NAME or --images FOLDER"),
        (("--data", "digits", "--size", 3), "--size goes with --images"),
        (("--data", "digits", "--epsilon", -1), "epsilon must be"),
        (("--data", "digits", "--limit", 0), "limit must be at least 1"),
        (("--data", "digits", "--open"), "no page to open"),
        (("--data", "imagenet"), "imagenet is a folder of images: --images"),
        (("--data", "letters"), "unknown data set 'letters'"),
        (("--data", "iris"), r"input|shape"),
        (("--data", "digits", "--attacks", "foo"), "unknown attack 'foo'"),
        (("--data", "digits", "--data-dir", "nowhere"), "there is no folder nowhere"),
        (("--images", "nowhere"), "there is no folder nowhere"),
    ],
)
def test_what_a_user_can_mend(given, message, model, monkeypatch):
    monkeypatch.setattr(tfrobust.alignment, "measure", lambda *_, **__: pytest.fail("computed"))
    epsilon = () if "--epsilon" in given else ("--epsilon", 1)
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        evaluate(model, *given, *epsilon)


def test_labels_that_are_not_the_models(pictures, model, tmp_path):
    few = randomise(keras.Sequential([keras.Input((28, 28, 1)), *model_of(3)]), 0)
    few.save(tmp_path / "few.keras")
    with pytest.raises(SystemExit, match="the model has 3 classes, digits has 10"):
        evaluate(tmp_path / "few.keras", "--data", "digits", "--epsilon", 1)
    (tmp_path / "val" / "ant").mkdir(parents=True)
    (tmp_path / "val" / "bee").mkdir()
    image = (pictures / "val" / "ant" / "0.png").read_bytes()
    (tmp_path / "val" / "ant" / "0.png").write_bytes(image)
    with pytest.raises(SystemExit, match=r"the model has 3 classes, .*\(one folder .* has 2"):
        evaluate(pictures / "three.keras", "--images", tmp_path / "val", *UNIT)
    (tmp_path / "val" / "0.png").write_bytes(image)
    with pytest.raises(SystemExit, match=r"0.png lies in .*val itself"):
        evaluate(pictures / "three.keras", "--images", tmp_path / "val", *UNIT)


def model_of(classes):
    return [layers.Flatten(), layers.Dense(classes)]


def test_the_norm_in_words():
    names = ("accuracy", "robust_accuracy", "certified_accuracy", "attack_success_rate")
    medians = ("distance", "certified_radius", "alignment", "linearized_robustness")
    summary = {
        "examples": 3,
        "epsilon": 0.25,
        "attacks": ["a", "b"],
        "violations": 0,
        "uncertified": None,
        **dict.fromkeys(names, 0.5),
        **{f"median_{name}": 1.0 for name in medians},
    }
    for norm, words in ((2.0, "l2"), (1.0, "l1"), ("inf", "l-infinity")):
        assert text({**summary, "norm": norm}).startswith(
            f"3 examples; epsilon 0.25 in {words}, in the network's input units; a, b\n"
        )
