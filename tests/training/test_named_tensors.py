"""Batches of any named tensors, and terms of a user's own that read them."""

import dataclasses
import inspect
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.small_training import sgd, small_data, small_model, weights_of

from tfrobust.data import Arrays, Share, Stream
from tfrobust.objectives import CrossEntropy, Objective, Term, WeightDecay
from tfrobust.training import SettingsChangedError, evaluate, fit

OPTIONS = {"epochs": 2, "batch_size": 30, "seed": 5}


def whole(batches):
    batches = list(batches.as_numpy_iterator())
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def test_all_tensors_of_an_example_stay_together():
    images, labels = small_data(47)
    number = np.arange(47)
    stream = Arrays({"images": images, "labels": labels, "number": number}, 3)
    assert isinstance(stream, Stream)
    seen = []
    for worker in range(2):
        share = Share.of(10, replicas=2, workers=2, worker=worker)
        part = whole(stream.training_batches(10, share, seed=1, epoch=2))
        np.testing.assert_array_equal(part["images"], images[part["number"]])
        np.testing.assert_array_equal(part["labels"], labels[part["number"]])
        seen.append(part["number"].reshape(4, 5))
    order = np.random.default_rng([1, 2]).permutation(47)[:40]
    np.testing.assert_array_equal(np.concatenate(seen, axis=1).ravel(), order)
    rest = whole(stream.training_batches(10, Share.of(10), seed=1, epoch=2, first_step=3))
    np.testing.assert_array_equal(rest["number"], order[30:])
    last = whole(stream.evaluation_batches(10, workers=3, worker=2))
    np.testing.assert_array_equal(last["number"], number[2::3])
    np.testing.assert_array_equal(last["images"], images[2::3])


def test_the_fingerprint_covers_names_and_contents():
    images, labels = small_data(20)

    def fingerprint(**others):
        return Arrays({"images": images, "labels": labels, **others}, 3).fingerprint()

    targets = np.zeros((20, 3))
    changed = targets.copy()
    changed[7, 1] = 1e-3
    different = [
        fingerprint(),
        fingerprint(targets=targets),
        fingerprint(targets=changed),
        fingerprint(aims=targets),
        fingerprint(targets=targets.reshape(20, 1, 3)),
    ]
    assert len(set(different)) == len(different)
    assert fingerprint(targets=targets) == fingerprint(targets=targets.astype("float32"))


def test_a_dict_of_images_and_labels_is_the_pair():
    images, labels = small_data()
    models = []
    for data in ((images, labels), {"labels": labels, "images": images}):
        models.append(small_model())
        fit(models[-1], data, CrossEntropy(), optimizer=sgd(), **OPTIONS)
    for one, other in zip(*map(weights_of, models), strict=True):
        np.testing.assert_array_equal(one, other)
    scores = [evaluate(models[0], images, labels), evaluate(models[0], data)]
    assert scores[0] == scores[1]


def test_the_example_of_a_users_own_term():
    """The code of Term's docstring as it stands; probabilities that are one-hot are labels."""
    code = textwrap.dedent(inspect.getdoc(Term).split("in addition to the labels:\n")[1])
    images, labels = small_data()
    histories, models = [], []
    for targets in (np.eye(3)[labels], np.full((90, 3), 1 / 3)):
        models.append(small_model())
        names = {
            "dataclasses": dataclasses,
            "tf": tf,
            "keras": keras,
            "Term": Term,
            "CrossEntropy": CrossEntropy,
            "fit": lambda *a, **k: histories.append(fit(*a, **k, batch_size=30)),
            "model": models[-1],
            "images": images,
            "labels": labels,
            "probabilities": targets,
        }
        exec(code, names)
    record, uniform = histories[0].records[0], histories[1].records[0]
    assert record["distillation"] == pytest.approx(record["cross_entropy"], rel=1e-5)
    assert uniform["distillation"] != pytest.approx(uniform["cross_entropy"], rel=1e-2)
    plain = small_model()
    fit(
        plain,
        (images, labels),
        CrossEntropy(),
        optimizer=keras.optimizers.SGD(0.1),
        epochs=1,
        batch_size=30,
    )
    for one, other in zip(weights_of(plain), weights_of(models[0]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@dataclasses.dataclass(frozen=True)
class Weighted(Term):
    """A term that reads a tensor of its own."""

    def __call__(self, batch):
        return tf.reduce_mean(batch.tensors["importance"] * batch.losses)


def test_a_tensor_that_the_data_lacks_is_named():
    with pytest.raises(ValueError, match="reads the tensor 'importance', but the data has only"):
        fit(small_model(), small_data(), Weighted(), optimizer=sgd(), **OPTIONS)


def test_importance_zero_is_as_if_an_example_were_not_there():
    """Only the weight decay moves the weights where every example has importance zero."""
    images, labels = small_data()
    data = {"images": images, "labels": labels, "importance": np.zeros(90)}
    model = small_model()
    before = [v.numpy() for v in model.trainable_variables]
    objective = Objective((Weighted(),)) + WeightDecay(0.5)
    fit(model, data, objective, optimizer=keras.optimizers.SGD(0.1), epochs=1, batch_size=30)
    for old, variable in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_allclose(variable.numpy(), old * 0.9**3, rtol=1e-5, atol=1e-7)


def test_other_targets_in_the_same_folder(tmp_path):
    images, labels = small_data()
    for importance, epochs in ((np.ones(90), 1), (np.arange(90.0), 2)):
        data = {"images": images, "labels": labels, "importance": importance}
        options = {**OPTIONS, "epochs": epochs, "folder": tmp_path, "optimizer": sgd()}
        if epochs == 1:
            fit(small_model(), data, Weighted(), **options)
    with pytest.raises(SettingsChangedError, match="another data"):
        fit(small_model(), data, Weighted(), **options)
