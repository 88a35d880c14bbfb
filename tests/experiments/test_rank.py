"""`experiments.rank` end to end: three small models on digits, the ranking, and every error."""

import keras
import numpy as np
import pandas as pd
import pytest
from nets import randomise

from experiments import rank
from tfrobust import data

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


def arguments(files, tmp_path, *names, images=20):
    paths = [str(files / f"{name}.keras") for name in names]
    out = ("--out", str(tmp_path / "run"))
    return [*paths, "--data", "digits", "--images", str(images), "--attack", "deepfool", *out]


def test_three_models_are_ranked(files, tmp_path, capsys):
    rank.main(arguments(files, tmp_path, "m0", "m1", "m2"))
    printed = capsys.readouterr().out
    table = pd.read_csv(tmp_path / "run" / "ranking.csv")
    assert list(table["rank by certified bound"]) == [1, 2, 3]
    assert (table["violations"] == 0).all() and set(table["model"]) == {"m0", "m1", "m2"}
    for words in rank.MEASURES.values():
        by_value = table[words].rank(ascending=False)
        np.testing.assert_array_equal(by_value, table[f"rank by {words}"])
    assert (table["certified bound"] <= table["attack distance"]).all()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "3 models ranked on digits" in page and "held" in page and "report:" in printed


def test_a_second_call_computes_nothing(files, tmp_path, monkeypatch):
    rank.main(arguments(files, tmp_path, "m0", "m1", images=5))
    monkeypatch.setattr(rank, "measured", lambda *_: pytest.fail("computed again"))
    rank.main(arguments(files, tmp_path, "m0", "m1", images=5))


def made_up(**columns):
    frame = {"label": [0, 1], "predicted": [0, 1], "tightened": True}
    return pd.DataFrame({**frame, **columns})


def test_ties_missing_values_and_violations():
    tables = {
        "a": made_up(certified_bound=[1, 3], linearized_robustness=[1, 1], attack_distance=[5, 5]),
        "b": made_up(
            certified_bound=[2, 2], linearized_robustness=[2, np.nan], attack_distance=[np.nan] * 2
        ),
        "c": made_up(
            certified_bound=[1, 1], linearized_robustness=[2, 2], attack_distance=[0.5, 9]
        ),
    }
    table = rank.ranking(tables, {"a": 0.5, "b": 0.6, "c": 0.7}).set_index("model")
    assert dict(table["rank by certified bound"]) == {"a": 1, "b": 1, "c": 3}
    assert dict(table["rank by linearized robustness ρ~"]) == {"a": 3, "b": 1, "c": 1}
    assert dict(table["rank by attack distance"]) == {"a": 1, "b": 3, "c": 2}
    assert table.loc["b", "attack success"] == "0.0%" and np.isnan(
        table.loc["b", "attack distance"]
    )
    assert dict(table["violations"]) == {"a": 0, "b": 0, "c": 1}
    found = rank.correlations(table.reset_index())
    assert found["Spearman"].isna().sum() == 2  # two models have an attack distance


def test_what_does_not_go_together_is_an_error(files, tmp_path):
    with pytest.raises(SystemExit, match="two or more"):
        rank.main(arguments(files, tmp_path, "m0"))
    with pytest.raises(SystemExit, match="one name"):
        rank.main(arguments(files, tmp_path, "m0", "m0"))
    wrong = randomise(keras.Sequential([keras.Input((5,)), layers.Dense(3)]), 0)
    wrong.save(tmp_path / "wrong.keras")
    bad = [str(files / "m0.keras"), str(tmp_path / "wrong.keras"), "--data", "digits"]
    with pytest.raises(SystemExit, match=r"model wrong does not go with digits.*\(batch, 5\)"):
        rank.main(bad)
    few = randomise(
        keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten(), layers.Dense(3)]), 0
    )
    few.save(tmp_path / "few.keras")
    with pytest.raises(SystemExit, match="3 classes, digits has 10"):
        rank.main([str(files / "m0.keras"), str(tmp_path / "few.keras"), "--data", "digits"])
    with pytest.raises(SystemExit, match="unknown data set"):
        rank.main([*bad[:1], str(files / "m1.keras"), "--data", "letters"])
    (tmp_path / "broken.keras").write_bytes(b"PK")
    with pytest.raises(Exception, match="truncated"):
        rank.main([*bad[:1], str(tmp_path / "broken.keras"), "--data", "digits"])
