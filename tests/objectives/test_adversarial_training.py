"""Adversarial training by `fit`: records, statistics, devices, resumed runs, precision."""

import dataclasses
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import adversarially
from helpers.adversarially import BALL, network, pictures, trained
from helpers.processes import Child
from helpers.small_training import sgd, weights_of

from tfrobust import data
from tfrobust.attacks import ThreatModel, pgd, robust_accuracy
from tfrobust.errors import InputError
from tfrobust.objectives import AdversarialTraining, CrossEntropy, DoubleBackprop, Term
from tfrobust.training import Plateau, checkpoints, computing_in, evaluate, fit

layers = keras.layers
L2 = dataclasses.replace(BALL, random_start=None)


def one_step(model, threat=L2, **options):
    """The record of a step on all examples that changes no weight."""
    [record] = trained(model, threat, rate=0.0, epochs=1, batch_size=96, **options)
    return record


@pytest.mark.parametrize("norm", [2, np.inf])
def test_the_record_is_of_the_images_that_pgd_finds(norm):
    model, (images, labels) = network(normalised=False), pictures()
    threat = ThreatModel(norm=norm, epsilon=0.5 if norm == 2 else 0.1, steps=3)
    record = one_step(model, threat, fit_options={"validation": pictures(40, seed=5)})
    result = pgd(model, images, labels, norm=norm, epsilon=threat.epsilon, steps=3, stop="last")
    scores = evaluate(model, images + result.perturbation, labels)
    assert record["adversarial_accuracy"] == pytest.approx(1 - result.success_rate)
    assert record["cross_entropy"] == pytest.approx(scores["loss"], rel=1e-4)
    assert "accuracy" not in record
    assert record["validation_accuracy"] == evaluate(model, *pictures(40, seed=5))["accuracy"]
    assert scores["accuracy"] < evaluate(model, images, labels)["accuracy"]


def test_both_accuracies_are_recorded_where_images_stay_clean():
    model = network(normalised=False)
    record = one_step(model, mix=0.5)
    assert record["adversarial_accuracy"] < record["accuracy"]
    names = ["epoch", "learning_rate", "cross_entropy", "weight_decay"]
    assert list(record) == [*names, "accuracy", "adversarial_accuracy"]


def test_a_schedule_may_monitor_the_adversarial_accuracy():
    schedule = Plateau(0.1, monitor="adversarial_accuracy", patience=1)
    records = trained(network(), epochs=3, fit_options={"schedule": schedule})
    rates = [record["learning_rate"] for record in records]
    monitored = [record["adversarial_accuracy"] for record in records]
    assert rates == pytest.approx([schedule(epoch, 3, monitored) for epoch in range(3)])
    with pytest.raises(InputError, match="monitors 'accuracy', but records have only"):
        trained(network(), fit_options={"schedule": Plateau(0.1, monitor="accuracy")})


@pytest.mark.parametrize(
    ("options", "updates"),
    [
        ({"mode": "inference"}, 1),
        ({"mode": "training"}, 1),
        ({"mode": "training", "update_statistics": True}, 3),  # two steps of the search
    ],
)
def test_how_often_moving_averages_move(options, updates):
    model, (images, _) = network(momentum=0.5), pictures()
    one_step(model, dataclasses.replace(L2, epsilon=1e-4), **options)
    first, norm = model.layers[:2]
    mean = np.asarray(first(images)).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(norm.moving_mean, (1 - 0.5**updates) * mean, atol=1e-4)
    assert abs(mean).max() > 0.05


def test_the_statistics_are_those_of_the_adversarial_images():
    model, (images, labels) = network(momentum=0.0), pictures()
    result = pgd(model, images, labels, norm=2, epsilon=0.5, steps=2, stop="last")
    one_step(model)
    first, norm = model.layers[:2]
    values = np.asarray(first(images + result.perturbation))
    np.testing.assert_allclose(norm.moving_mean, values.mean(axis=(0, 1, 2)), atol=1e-4)
    assert abs(np.asarray(first(images)).mean(axis=(0, 1, 2)) - norm.moving_mean).max() > 1e-3


def test_it_makes_robust():
    some = data.load("digits").take(800)
    images = some.images[:, ::2, ::2]
    threat = ThreatModel(norm=2, epsilon=1.0, steps=4, random_start="ball")
    figures = []
    for objective in (CrossEntropy(), CrossEntropy() + AdversarialTraining(threat)):
        keras.utils.set_random_seed(0)
        head = [layers.Flatten(), layers.Dense(48, "relu"), layers.Dense(10)]
        model = keras.Sequential([keras.Input(images.shape[1:]), *head])
        adam = keras.optimizers.Adam(3e-3)
        options = {"optimizer": adam, "epochs": 6, "batch_size": 50, "progress": False}
        fit(model, (images[:600], some.labels[:600]), objective, **options)
        [result] = robust_accuracy(model, (images[600:], some.labels[600:]), threat)
        figures.append(result)
    plain, robust = figures
    assert robust.accuracy > plain.accuracy - 0.1
    assert robust.worst_case > plain.worst_case + 0.1


def test_other_terms_differentiate_the_adversarial_images():
    model, (images, labels) = network(normalised=False), pictures()
    objective = CrossEntropy() + AdversarialTraining(L2) + DoubleBackprop(1.0)
    options = {"optimizer": sgd(0.0), "epochs": 1, "batch_size": 96, "progress": False}
    [record] = fit(model, (images, labels), objective, **options).records
    result = pgd(model, images, labels, norm=2, epsilon=0.5, steps=2, stop="last")
    penalised = CrossEntropy() + DoubleBackprop(1.0)
    [expected] = fit(model, (images + result.perturbation, labels), penalised, **options).records
    assert record["double_backprop"] == pytest.approx(expected["double_backprop"], rel=1e-3)


def test_two_devices_end_as_one():
    """With random starts and images that stay clean; attacks too."""
    Child(adversarially.on_one_and_on_two).finished()


def assert_equal_runs(one, other):
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_run_that_is_interrupted_ends_as_one_that_is_not(tmp_path, monkeypatch):
    """Bit for bit, with random starts, dropout and batch statistics in the search."""
    options = {"mode": "training", "mix": 0.25, "batch_size": 16}
    folder = {"folder": tmp_path, "checkpoint_every": 4}

    class Interrupted(Exception):
        pass

    save = checkpoints.save

    def interrupted(where, step, *state):
        save(where, step, *state)
        if step == 8:
            raise Interrupted

    monkeypatch.setattr(checkpoints, "save", interrupted)
    with pytest.raises(Interrupted):  # in the second epoch
        trained(network(dropout=0.5), fit_options=folder, **options)
    monkeypatch.undo()
    resumed, whole = network(dropout=0.5), network(dropout=0.5)
    records = trained(resumed, fit_options=folder, **options)
    assert records == trained(whole, **options)
    assert_equal_runs(weights_of(resumed), weights_of(whole))
    other = network(dropout=0.5)
    trained(other, fit_options={"seed": 1}, **options)
    assert (weights_of(other)[0] != weights_of(whole)[0]).any()


@pytest.mark.slow
def test_a_run_that_is_killed_ends_as_one_that_is_not(tmp_path):
    folder = tmp_path / "killed"
    for moment, step, status in (("while", 9, -signal.SIGKILL), ("never", 0, 0)):
        child = Child(adversarially.killed_or_whole, folder, moment, step)
        assert child.wait() == status, child.printed()[-3000:]
    with np.load(tmp_path / "whole.npz") as one, np.load(tmp_path / "resumed.npz") as other:
        assert one.files == other.files
        assert_equal_runs([one[name] for name in one.files], [other[name] for name in one.files])


@dataclasses.dataclass(frozen=True)
class Seen(Term):
    """The seed that `prepare` is given, as a value."""

    index: int

    def prepare(self, logits_model, tensors, seed):
        return {**tensors, "seed": tf.repeat(seed[None], tf.shape(tensors["labels"])[0], axis=0)}

    def __call__(self, batch):
        return tf.reduce_mean(tf.cast(batch.tensors["seed"], tf.float32), axis=0)[self.index]


def test_terms_are_given_another_seed_in_every_step():
    def means(index, **options):
        options |= {"optimizer": sgd(), "epochs": 2, "batch_size": 24, "progress": False}
        objective = CrossEntropy() + Seen(index)
        return [
            record["seen"] for record in fit(small_mlp(), pictures(), objective, **options).records
        ]

    assert means(1) == [1.5, 5.5]  # updates so far
    first, other = means(0), means(0, seed=1)
    assert first[0] == first[1] != other[0]


def small_mlp():
    keras.utils.set_random_seed(0)
    hidden = [layers.Flatten(), layers.Dense(8, "relu"), layers.Dense(3)]
    return keras.Sequential([keras.Input((6, 6, 1)), *hidden])


def test_xla_takes_the_same_steps():
    columns = ["cross_entropy", "adversarial_accuracy"]
    plain, compiled = (
        trained(small_mlp(), L2, fit_options={"jit": jit})[-1] for jit in (False, True)
    )
    for column in columns:
        assert compiled[column] == pytest.approx(plain[column], rel=1e-3)


def test_half_precision_with_a_loss_scale():
    reference = trained(small_mlp(), epochs=4)
    with computing_in("mixed_float16"):
        model = small_mlp()
    records = trained(model, epochs=4)
    assert records[-1]["loss_scale"] > 0
    for half, full in zip(records, reference, strict=True):
        assert half["cross_entropy"] == pytest.approx(full["cross_entropy"], rel=0.05)
        assert abs(half["adversarial_accuracy"] - full["adversarial_accuracy"]) < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 255}, "images holds values from 0 to 255, outside value_range"),
        ({"threat": ThreatModel(norm=np.inf, epsilon=2)}, "epsilon 2 exceeds 1, the largest dist"),
        ({"options": {"mix": 0.01}}, "choose a larger batch_size, or mix=0"),
        ({"names": ["clean_images"]}, "the data has a tensor 'clean_images', a name of adversari"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_bad_data(changes, message, streamed):
    images, labels = pictures()
    images = images * changes.get("scale", 1)
    tensors = {"images": images, "labels": labels}
    tensors |= dict.fromkeys(changes.get("names", ()), labels)
    some = Streamed(tensors) if streamed else tensors
    options = changes.get("options", {})
    with pytest.raises(InputError, match=message):
        trained(small_mlp(), changes.get("threat", BALL), data=some, **options)


class Streamed:
    """Data that is not known to be in memory."""

    def __init__(self, tensors):
        self._arrays = data.Arrays(tensors, 3)

    def __getattr__(self, name):
        return getattr(self._arrays, name)


def test_a_search_alone_minimises_nothing():
    with pytest.raises(InputError, match=r"nothing to minimise: add CrossEntropy\(\)"):
        fit(small_mlp(), pictures(100), AdversarialTraining(L2), optimizer=sgd(), epochs=1)
