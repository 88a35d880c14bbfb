"""`tfrobust rank` end to end: three small models on digits, the ranking, and every error."""

import re
import shutil

import keras
import numpy as np
import pandas as pd
import pytest
from helpers.commands import tfrobust
from helpers.nets import randomise

from tfrobust import attacks, data
from tfrobust.commands import main
from tfrobust.commands.rank import ranking, steps

layers = keras.layers


def digits_model(scale, seed=0):
    """A linear classifier of class means, whose logits are scaled before a saturating layer."""
    train = data.load("digits", "train")
    flat = train.images.reshape(len(train), -1)
    means = np.stack([flat[train.labels == k].mean(0) for k in range(10)])
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Flatten(),
            layers.Dense(10),
            layers.ELU(),
            layers.Dense(10),
        ]
    )
    model.layers[1].set_weights([scale * means.T, -scale * (means**2).sum(1) / 2])
    noise = np.random.default_rng(seed).normal(0, 0.3, (10, 10))
    model.layers[3].set_weights([np.eye(10) + noise, np.zeros(10)])
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed in range(3):
        digits_model(0.1, seed).save(folder / f"m{seed}.keras")
    return folder


def rank(*arguments):
    main(["rank", *map(str, arguments)])


def arguments(files, tmp_path, *names, images=20):
    paths = [str(files / f"{name}.keras") for name in names]
    out = ("--out", str(tmp_path / "run"))
    return [*paths, "--data", "digits", "--images", str(images), "--attack", "deepfool", *out]


@pytest.fixture(scope="module")
def ranked(files, tmp_path_factory):
    """The folder that holds the run of two models."""
    folder = tmp_path_factory.mktemp("ranked")
    rank(*arguments(files, folder, "m0", "m1", images=5))
    return folder


@pytest.fixture
def not_attacked(ranked, tmp_path):
    """A copy of it without the attacks' results."""
    shutil.copytree(ranked / "run", tmp_path / "run")
    for path in (tmp_path / "run").rglob("attack.parquet"):
        path.unlink()
    return tmp_path


def verdict(page):
    """Of the page's one claim."""
    (shown,) = re.findall(r'<td class="verdict [a-z-]*">([a-z ]*)</td>', page)
    return shown


def assert_ranked(folder, names):
    """Ranks follow the values, bounds hold, and the page says both."""
    table = pd.read_csv(folder / "run" / "ranking.csv")
    assert list(table["rank by certified bound"]) == [*range(1, len(names) + 1)]
    assert (table["violations"] == 0).all() and set(table["model"]) == names
    for words in ranking.MEASURES.values():
        by_value = table[words].rank(ascending=False)
        np.testing.assert_array_equal(by_value, table[f"rank by {words}"])
    assert (table["certified bound"] <= table["attack distance"]).all()
    page = (folder / "run" / "report.html").read_text()
    assert f"{len(names)} models ranked on digits" in page


def test_two_models_are_ranked(ranked):
    assert_ranked(ranked, {"m0", "m1"})


@pytest.mark.slow
def test_three_models_are_ranked(files, tmp_path, capsys):
    rank(*arguments(files, tmp_path, "m0", "m1", "m2"))
    assert "report:" in capsys.readouterr().out
    assert_ranked(tmp_path, {"m0", "m1", "m2"})
    assert verdict((tmp_path / "run" / "report.html").read_text()) == "held"


@pytest.mark.slow  # two other commands are started as processes in the usual tests
def test_the_command_as_users_start_it(files, tmp_path):
    done = tfrobust("rank", *arguments(files, tmp_path, "m0", "m1", images=3))
    assert (done.returncode, done.stderr) == (0, "")
    assert "report: file://" in done.stdout


def test_a_second_call_computes_nothing(files, ranked, tmp_path, monkeypatch):
    shutil.copytree(ranked / "run", tmp_path / "run")
    (tmp_path / "run" / "m1" / "attack.parquet").unlink()
    parts = ("bounds.robustness", "alignment.measure", "attacks.minimal")
    again = forbidden(monkeypatch, *parts)
    # the checks before the run bound one example
    monkeypatch.setattr(steps, "_check_model", lambda *_: None)
    with pytest.raises(pytest.fail.Exception):
        rank(*arguments(files, tmp_path, "m0", "m1", images=5))
    assert again == ["attacks.minimal"]  # what was bounded before a failing attack is kept
    monkeypatch.undo()
    rank(*arguments(files, tmp_path, "m0", "m1", images=5))
    again = forbidden(monkeypatch, *parts)
    monkeypatch.setattr(steps, "_check_model", lambda *_: None)
    rank(*arguments(files, tmp_path, "m0", "m1", images=5))
    assert not again


def forbidden(monkeypatch, *names):
    """The calls of functions of `steps`'s modules, which fail."""
    called = []

    def refuse(name):
        called.append(name)
        pytest.fail(f"{name} was called again")

    for name in names:
        module, function = name.split(".")
        monkeypatch.setattr(
            getattr(steps, module), function, lambda *_, name=name, **__: refuse(name)
        )
    return called


def made_up(**columns):
    frame = {"label": [0, 1], "predicted": [0, 1], "tightened": True}
    return pd.DataFrame({**frame, **columns})


def test_ties_failures_and_violations():
    nan, inf = np.nan, np.inf
    tables = {
        "a": made_up(certified_bound=[1, 3], linearized_robustness=[1, 1], attack_distance=[5, 5]),
        "b": made_up(
            certified_bound=[2, 2], linearized_robustness=[2, nan], attack_distance=[inf, inf]
        ),
        "c": made_up(
            certified_bound=[1, 1], linearized_robustness=[2, 2], attack_distance=[0.5, 9]
        ),
        "d": made_up(
            certified_bound=[inf, inf], linearized_robustness=[nan, nan], attack_distance=[inf, inf]
        ),
    }
    table = ranking.ranking(tables, dict.fromkeys(tables, 0.5)).set_index("model")
    assert dict(table["rank by certified bound"]) == {"d": 1, "a": 2, "b": 2, "c": 4}
    assert dict(table["rank by linearized robustness ρ~"]) == {"a": 3, "b": 1, "c": 1, "d": 4}
    assert dict(table["rank by attack distance"]) == {"b": 1, "d": 1, "a": 3, "c": 4}
    assert table.loc["b", "attack success"] == "0.0%"
    assert np.isinf(table.loc["b", "attack distance"])
    assert dict(table["violations"]) == {"a": 0, "b": 0, "c": 1, "d": 0}
    found = ranking.correlations(table.reset_index())
    assert found["models"].tolist() == [3, 4, 3]
    assert found["Spearman"].notna().all()


def test_a_model_that_resists_the_attack_ranks_above():
    resists, yields = np.full(20, np.inf), np.full(20, 2.0)
    resists[:2] = 0.1  # the few it changes, it changes with little
    common = {"label": 0, "predicted": 0, "tightened": True, "certified_bound": 0.01}
    frames = {
        name: pd.DataFrame({"attack_distance": d, "linearized_robustness": 1.0, **common})
        for name, d in (("yields", yields), ("resists", resists))
    }
    table = ranking.ranking(frames, {"yields": 0.9, "resists": 0.9}).set_index("model")
    assert dict(table["rank by attack distance"]) == {"resists": 1, "yields": 2}
    assert table.loc["resists", "attack success"] == "10.0%"


def test_the_page_counts_attacked_examples(files, not_attacked, monkeypatch, capsys):
    minimal = attacks.minimal

    def failing(*given, **settings):
        found = minimal(*given, **settings)
        found.distance[1:] = np.inf
        return found

    monkeypatch.setattr(attacks, "minimal", failing)
    rank(*arguments(files, not_attacked, "m0", "m1", images=5))
    page = (not_attacked / "run" / "report.html").read_text()
    assert "0 violations in 2 attacked examples (of 10)" in page and "<td>inf</td>" in page
    assert " inf " in capsys.readouterr().out
    table = pd.read_csv(not_attacked / "run" / "ranking.csv")
    assert np.isinf(table["attack distance"]).all()


def test_a_ranking_without_a_success_is_not_tested(files, not_attacked, monkeypatch):
    minimal = attacks.minimal

    def failing(*given, **settings):
        found = minimal(*given, **settings)
        found.distance[:] = np.inf
        return found

    monkeypatch.setattr(attacks, "minimal", failing)
    rank(*arguments(files, not_attacked, "m0", "m1", images=5))
    page = (not_attacked / "run" / "report.html").read_text()
    assert verdict(page) == "not tested" and "0 violations in 0 attacked examples (of 10)" in page


def test_tables_are_attacked_by_deepfool_without_a_warning(tmp_path, recwarn):
    paths = []
    for seed in range(2):
        tanh = layers.Dense(5, activation="tanh")
        model = randomise(keras.Sequential([keras.Input((4,)), tanh, layers.Dense(3)]), seed)
        paths.append(str(tmp_path / f"m{seed}.keras"))
        model.save(paths[-1])
    rank(*paths, "--data", "iris", "--out", str(tmp_path / "run"))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "attack: deepfool (chosen for tables)" in page
    assert not [w for w in recwarn if "homogeneous decomposition" in str(w.message)]


@pytest.mark.slow  # the choice for tables is tested always
def test_images_are_attacked_by_carlini_wagner_and_warned_of(tmp_path, monkeypatch):
    used, paths = [], []
    for seed in range(2):
        stack = [layers.Flatten(), layers.Dense(5, activation="tanh"), layers.Dense(10)]
        model = randomise(keras.Sequential([keras.Input((28, 28, 1)), *stack]), seed)
        paths.append(str(tmp_path / f"m{seed}.keras"))
        model.save(paths[-1])
    minimal = attacks.minimal

    def quick(model, x, attack, **settings):
        used.append(attack)
        return minimal(model, x, "deepfool", **settings)

    monkeypatch.setattr(attacks, "minimal", quick)
    given = [*paths, "--data", "digits", "--images", "2", "--out", str(tmp_path / "run")]
    with pytest.warns(UserWarning, match="homogeneous decomposition is not exact"):
        rank(*given)
    assert set(used) == {"carlini_wagner"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "attack: carlini_wagner (chosen for images)" in page


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--attack", "foo"], "model m0: unknown attack 'foo'"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--images", "0"], "--images must be at least 1, got 0"),
        (["nan"], "model nan: .*kernel holds NaN or infinite values"),
        (["rule"], "model rule: layer 'LayerNormalization' .* has no certified rule"),
        (["missing"], "there is no model file"),
    ],
)
def test_what_would_fail_late_is_said_first(files, tmp_path, changed, message, monkeypatch):
    bad = digits_model(0.1)
    bad.layers[1].set_weights([np.full((784, 10), np.nan), np.zeros(10)])
    bad.save(tmp_path / "nan.keras")
    stack = [layers.Flatten(), layers.LayerNormalization(), layers.Dense(10)]
    randomise(keras.Sequential([keras.Input((28, 28, 1)), *stack]), 0).save(tmp_path / "rule.keras")
    second = str(files / "m1.keras")
    if not changed[0].startswith("--"):
        second, changed = str(tmp_path / f"{changed[0]}.keras"), []
    called = forbidden(monkeypatch, "alignment.measure", "attacks.minimal")
    out = tmp_path / "run"
    given = [str(files / "m0.keras"), second, "--data", "digits", "--out", str(out), *changed]
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        rank(*given)
    assert not out.exists() and not called


def test_files_of_one_name(files, tmp_path):
    for folder in ("a/x", "b/x", "c"):
        (tmp_path / folder).mkdir(parents=True)
        digits_model(0.1).save(tmp_path / folder / "m0.keras")
    names, _ = steps._models((str(tmp_path / "c" / "m0.keras"), str(tmp_path / "a/x/m0.keras")))
    assert names == ["c-m0", "x-m0"]
    with pytest.raises(SystemExit, match="x-m0, which distinguish models: rename one of the files"):
        rank(*[tmp_path / f"{each}/x/m0.keras" for each in "ab"], "--data", "digits")


def test_other_settings_in_the_folder(files, ranked):
    with pytest.raises(SystemExit, match="holds a run with images = 5, now 3"):
        rank(*arguments(files, ranked, "m0", "m1", images=3))


def test_what_does_not_go_together_is_an_error(files, tmp_path):
    with pytest.raises(SystemExit, match="two or more"):
        rank(*arguments(files, tmp_path, "m0"))
    with pytest.raises(SystemExit, match="same name"):
        rank(*arguments(files, tmp_path, "m0", "m0"))
    wrong = randomise(keras.Sequential([keras.Input((5,)), layers.Dense(3)]), 0)
    wrong.save(tmp_path / "wrong.keras")
    bad = [str(files / "m0.keras"), str(tmp_path / "wrong.keras"), "--data", "digits"]
    with pytest.raises(SystemExit, match=r"model wrong: it does not go with digits: .*, 5\)"):
        rank(*bad)
    few = randomise(
        keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten(), layers.Dense(3)]), 0
    )
    few.save(tmp_path / "few.keras")
    with pytest.raises(SystemExit, match="model few: it has 3 classes, digits has 10"):
        rank(str(files / "m0.keras"), str(tmp_path / "few.keras"), "--data", "digits")
    with pytest.raises(SystemExit, match="imagenet does not fit in memory"):
        rank(*bad[:1], str(files / "m1.keras"), "--data", "imagenet")
    with pytest.raises(SystemExit, match="unknown data set"):
        rank(*bad[:1], str(files / "m1.keras"), "--data", "letters")
    (tmp_path / "broken.keras").write_bytes(b"PK")
    with pytest.raises(SystemExit, match="truncated"):
        rank(*bad[:1], str(tmp_path / "broken.keras"), "--data", "digits")
