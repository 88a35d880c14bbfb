"""ROAR and KAR on images of which only some pixels tell the class."""

import json

import keras
import numpy as np
import pytest
from helpers.nets import CountsTraces

from tfrobust.objectives import CrossEntropy
from tfrobust.retraining import (
    FRACTIONS,
    DamagedRetrainError,
    RetrainingCurve,
    kar,
    mean_colour,
    occlude,
    random_baseline,
    roar,
)
from tfrobust.retraining.occlusion import random_pixels
from tfrobust.training import RepeatedFit, SettingsChangedError, evaluate, fit

layers = keras.layers
SIZE = 5
TELLING = [(0, 1), (1, 3), (2, 2), (3, 0), (4, 4), (4, 1)]
QUICK = {"fractions": (0.5,), "retrains": 1, "unoccluded": 0.9, "progress": False}


def examples(count, seed):
    """(count, 5, 5, 2) of noise about .5, in which 6 of 25 pixels lean towards the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    images = rng.normal(0.5, 1, (count, SIZE, SIZE, 2))
    for row, column in TELLING:
        images[:, row, column] += 1.2 * (2 * labels[:, None] - 1)
    return images.astype(np.float32), labels


TRAIN, TEST = examples(240, 0), examples(200, 1)


def perfect(count):
    maps = np.zeros((count, SIZE, SIZE), np.float32)
    maps[:, *np.transpose(TELLING)] = 1
    return maps


PERFECT = perfect(240), perfect(200)


def build():
    return keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 2)),
            CountsTraces(),
            layers.Flatten(),
            layers.Dense(8, activation="relu"),
            layers.Dense(2),
        ]
    )


def adam():
    return keras.optimizers.Adam(0.02, epsilon=1e-8)


class Counting(RepeatedFit):
    """Counts its runs, and ends the process, so to say, before one of them."""

    runs = 0
    killed_at = None

    def train(self, *args, **options):
        if self.runs == self.killed_at:
            raise KeyboardInterrupt
        self.runs += 1
        return super().train(*args, **options)


def repeated(epochs=3):
    return Counting(build, CrossEntropy(), optimizer=adam, epochs=epochs, batch_size=40)


@pytest.fixture(scope="module")
def training():
    return repeated()


@pytest.fixture(scope="module")
def baseline(training):
    return random_baseline(training, TRAIN, TEST, retrains=2)


def test_a_perfect_attribution_beats_random_and_random_beats_the_worst(training, baseline):
    assert baseline.accuracies.shape == (5, 2)
    assert baseline.unoccluded > 0.9
    assert baseline.chance == 0.5
    options = {"baseline": baseline, "retrains": 1, "progress": False}
    removed, kept = (method(training, TRAIN, TEST, PERFECT, **options) for method in (roar, kar))
    for score in (removed, kept):
        assert score.mu > 0.05
        assert score.mu > 3 * score.standard_error > 0
        assert score.curve.unoccluded == baseline.unoccluded
        np.testing.assert_array_equal(score.curve.fractions, FRACTIONS)
    # all telling pixels are gone from .3 on, or left down to .3
    assert (removed.curve.accuracies[1:] < 0.65).all()
    assert (kept.curve.accuracies[1:] > 0.9).all()
    worst = [1 - maps for maps in PERFECT]
    for method in (roar, kar):
        assert method(training, TRAIN, TEST, worst, **options, fractions=(0.3, 0.7)).mu < 0


def test_the_random_curve_falls_with_the_share_of_replaced_pixels(baseline):
    _, accuracies = baseline.closed
    assert (np.diff(accuracies) < 0.04).all()
    assert accuracies[1] - accuracies[-2] > 0.2


def fitted(seed, train, test):
    keras.utils.set_random_seed(seed)
    model = build()
    options = {"optimizer": adam(), "epochs": 3, "batch_size": 40, "seed": seed}
    fit(model, train, CrossEntropy(), **options, progress=False)
    return evaluate(model, *test, batch_size=40)


@pytest.mark.parametrize("kind", ["roar", "kar", "random"])
def test_a_retrain_equals_fit_on_occluded_images(training, kind, tmp_path):
    """Accuracy and loss bit for bit; ties of the perfect maps are broken alike."""
    options = {**QUICK, "fractions": (0.3,), "folder": tmp_path, "seed": 5}
    if kind == "random":
        curve = random_baseline(training, TRAIN, TEST, **options)
    else:
        baseline = RetrainingCurve("random", np.array([0.3, 0.7]), np.zeros((2, 1)), 0.9, 0.5)
        method = roar if kind == "roar" else kar
        curve = method(training, TRAIN, TEST, PERFECT, baseline=baseline, **options).curve
    content = json.loads((tmp_path / f"{kind}-0.3-0.json").read_text())
    seed, colour = content["settings"]["training_seed"], mean_colour(TRAIN[0])
    sets = []
    for part, ((images, labels), maps) in enumerate(zip((TRAIN, TEST), PERFECT, strict=True)):
        if kind == "random":
            mask = random_pixels(images.shape[:3], 0.3, np.random.SeedSequence([seed, part]))
            occluded = np.where(mask[..., None], colour, images)
        else:
            occluded = occlude(images, maps, 0.3, keep=kind == "kar", colour=colour, seed=5)
        sets.append((occluded, labels))
    assert content["result"] == fitted(seed, *sets)
    assert curve.accuracies[0, 0] == content["result"]["accuracy"]


def test_one_step_is_traced_for_all_retrains(training, baseline):
    options = {**QUICK, "unoccluded": None, "baseline": baseline}
    roar(training, TRAIN, TEST, PERFECT, **options)
    before, runs = CountsTraces.traces, training.runs
    kar(training, TRAIN, TEST, PERFECT, **options, seed=8)
    assert training.runs == runs + 1
    assert CountsTraces.traces == before + 1  # the call of `build`


def test_a_killed_run_loses_one_retrain_only(training, tmp_path):
    options = {**QUICK, "retrains": 2}
    whole = roar(training, TRAIN, TEST, PERFECT, folder=tmp_path / "whole", **options)
    killed = repeated()
    killed.killed_at = 3
    with pytest.raises(KeyboardInterrupt):
        roar(killed, TRAIN, TEST, PERFECT, folder=tmp_path / "killed", **options)
    names = sorted(path.name for path in (tmp_path / "killed").iterdir())
    assert names == ["random-0.5-0.json", "random-0.5-1.json", "roar-0.5-0.json"]
    (tmp_path / "killed" / names[1]).unlink()
    killed.killed_at = None
    score = roar(killed, TRAIN, TEST, PERFECT, folder=tmp_path / "killed", **options)
    assert killed.runs == 5
    for one, other in ((score.curve, whole.curve), (score.baseline, whole.baseline)):
        np.testing.assert_array_equal(one.accuracies, other.accuracies)
    assert score.summary() == whole.summary()


def test_finished_retrains_are_reused(training, tmp_path):
    options = {**QUICK, "folder": tmp_path}
    first = roar(training, TRAIN, TEST, PERFECT, **options)
    runs = training.runs
    assert roar(training, TRAIN, TEST, PERFECT, **options).mu == first.mu
    assert training.runs == runs
    # KAR finds the random curve; more retrains and fractions are added to those that are there
    kept = kar(training, TRAIN, TEST, PERFECT, **options)
    assert training.runs == runs + 1
    assert kept.baseline_area == pytest.approx(1 - first.baseline_area)
    options |= {"retrains": 2, "fractions": (0.5, 0.7)}
    more = roar(training, TRAIN, TEST, PERFECT, **options)
    assert training.runs == runs + 1 + 2 * 3
    np.testing.assert_array_equal(more.curve.accuracies[:1, :1], first.curve.accuracies)
    frame = more.to_frame()
    assert (frame["method"] == "roar").sum() == (frame["method"] == "random").sum() == 4


def test_other_settings_in_the_same_folder_are_refused(training, tmp_path):
    options = {**QUICK, "folder": tmp_path}
    arguments = [training, TRAIN, TEST, PERFECT]
    roar(*arguments, **options)
    runs = training.runs
    other_test = TEST[0] + 0.1, TEST[1]
    other_maps = PERFECT[0], PERFECT[1] + np.eye(SIZE, dtype=np.float32)
    changes = {
        "attribution": [training, TRAIN, TEST, other_maps],
        "train:": [training, TEST, TEST, (PERFECT[1], PERFECT[1])],
        "test:": [training, TRAIN, other_test, PERFECT],
        "epochs: 3, now 2": [repeated(epochs=2), TRAIN, TEST, PERFECT],
    }
    for named, changed in changes.items():
        with pytest.raises(SettingsChangedError, match=f"another {named}"):
            roar(*changed, **options)
    for key, value in (("noise", 1e-8), ("colour", 0.0), ("seed", 1)):
        with pytest.raises(SettingsChangedError, match=f"another {key}"):
            roar(*arguments, **options, **{key: value})
    assert training.runs == runs


@pytest.mark.parametrize("text", ["", "{", "[]", '{"settings": {}}', '{"result": {"loss": 1}}'])
def test_a_damaged_file_is_named(training, baseline, tmp_path, text):
    path = tmp_path / "roar-0.5-0.json"
    path.write_text(text)
    runs = training.runs
    options = {"baseline": baseline, "fractions": (0.5,), "retrains": 2, "folder": tmp_path}
    with pytest.raises(DamagedRetrainError, match=r"roar-0.5-0.json is damaged .* Delete it"):
        roar(training, TRAIN, TEST, PERFECT, **options)
    assert training.runs == runs


def test_a_folder_that_cannot_be_written_is_refused_first(training, tmp_path):
    (tmp_path / "file").write_text("")
    runs = training.runs
    with pytest.raises(OSError, match="cannot write to the folder"):
        roar(training, TRAIN, TEST, PERFECT, folder=tmp_path / "file" / "inside", **QUICK)
    with pytest.raises(OSError, match="cannot write to the folder"):
        random_baseline(training, TRAIN, TEST, folder=tmp_path / "file", **QUICK)
    assert training.runs == runs


def test_bad_input_is_refused_before_training(training, baseline):
    runs = training.runs

    def refused(match, *, train=TRAIN, test=TEST, maps=PERFECT, **options):
        for method in (roar, kar):
            with pytest.raises(ValueError, match=match):
                method(training, train, test, maps, **{"baseline": baseline, **options})

    images, labels = TRAIN
    refused("not one-hot rows", train=(images, np.eye(2)[labels]))
    refused("NaN or infinite", train=(np.full_like(images, np.nan), labels))
    refused("the model takes", test=(TEST[0][:, :4], TEST[1]))
    refused("must be a pair", maps=PERFECT[0])
    refused("must be a pair", maps=(*PERFECT, PERFECT[0]))
    refused(r"but the test images are \(200, 5, 5\)", maps=(PERFECT[0], PERFECT[0]))
    refused(r"but the training images are", maps=(PERFECT[0][:, :4], PERFECT[1]))
    refused("for 240 of 240 images", maps=(PERFECT[0] + np.nan, PERFECT[1]))
    for fractions in ((0.0, 0.5), (0.5, 1.0), (np.nan,), ("half",)):
        refused("a fraction must lie between 0 and 1", fractions=fractions)
    for fractions in ((), (0.5, 0.3), (0.5, 0.5)):
        refused("fractions must increase", fractions=fractions)
    refused("retrains must be a whole number of at least 1", retrains=0)
    refused("noise must be at least 0", noise=-1.0)
    refused("colour must be 2 finite numbers", colour=[0.0, 0.0, 0.0])
    refused("seed must be a whole number", seed=-1)
    refused("a share of 0.4 of the pixels|a share of 0.6 of the pixels", fractions=(0.4,))
    refused("but the baseline begins at", unoccluded=0.5)
    refused("unoccluded must be an accuracy", unoccluded=73.66, baseline=None)
    refused("baseline must be the curve of random_baseline", baseline=0.5)
    assert training.runs == runs


def test_what_is_not_images_in_memory_is_refused(training):
    class Elsewhere:
        examples, classes, input_shape = 240, 2, (SIZE, SIZE, 2)

        def method(self):
            raise AssertionError

        fingerprint = training_batches = evaluation_batches = errors = method

    with pytest.raises(ValueError, match=r"train must be images .* in memory"):
        roar(training, Elsewhere(), TEST, PERFECT, **QUICK)
    table = RepeatedFit(
        lambda: keras.Sequential([keras.Input((4,)), layers.Dense(2)]),
        CrossEntropy(),
        optimizer=adam,
        epochs=1,
    )
    with pytest.raises(ValueError, match=r"train must be images .* in memory"):
        random_baseline(table, (np.zeros((200, 4)), TRAIN[1][:200]), TEST, **QUICK)
