"""Interpretation and Jacobian regularization in `fit`: data, records, devices, precision."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from helpers import gradient_penalties
from helpers.gradient_penalties import (
    augmented,
    forward,
    network,
    one_layer,
    pictures,
    trained,
)
from helpers.processes import Child
from helpers.small_training import weights_of

import tfrobust
from tfrobust.attacks import ThreatModel, pgd
from tfrobust.data import Arrays, as_stream
from tfrobust.errors import InputError
from tfrobust.objectives import (
    AdversarialTraining,
    CrossEntropy,
    InterpretationRegularization,
    JacobianRegularization,
    Objective,
    Term,
)
from tfrobust.training import Plateau, computing_in, evaluate

MAPS = InterpretationRegularization(1.0, 0.2)
BOTH = CrossEntropy() + MAPS + JacobianRegularization(0.1, projections=2)
MEASURED = ["cosine", "gradient_norm", "zero_gradients", "zero_targets", "jacobian_norm"]


def logit_gradients(model, images, labels):
    return tfrobust.jacobian(model, images)[np.arange(len(labels)), labels]


def one_step(data, objective, model=None, **options):
    """The record of a step on all examples that changes no weight."""
    model = network() if model is None else model
    [record] = trained(model, data, objective, rate=0.0, epochs=1, batch_size=48, **options)
    return record


def test_the_record_of_a_triple_against_the_jacobian():
    images, labels, maps = pictures()
    maps[:6] = 0
    objective = CrossEntropy() + MAPS + JacobianRegularization(0.1)
    record = one_step((images, labels, maps), objective)
    model = network()
    gradients = logit_gradients(model, images, labels).reshape(48, -1)
    norms = np.linalg.norm(gradients, axis=1)
    products = (gradients * maps.reshape(48, -1)).sum(axis=1)
    lengths = np.linalg.norm(maps.reshape(48, -1), axis=1)
    cosine = (products[6:] / norms[6:] / lengths[6:]).sum() / 48
    jacobian = np.linalg.norm(tfrobust.jacobian(model, images).reshape(48, -1), axis=1).mean()
    expected = {
        "cross_entropy": evaluate(model, images, labels)["loss"],
        "interpretation_regularization": 0.2 * norms.mean() - cosine,
        "jacobian_regularization": 0.1 * jacobian,
        "cosine": cosine,
        "gradient_norm": norms.mean(),
        "zero_gradients": 0,
        "zero_targets": 6 / 48,
        "jacobian_norm": jacobian,
    }
    assert list(record) == ["epoch", "learning_rate", *expected, "accuracy"]
    for name, value in expected.items():
        assert record[name] == pytest.approx(value, rel=1e-4, abs=1e-6)


def test_a_triple_is_a_dict_with_targets():
    images, labels, maps = pictures()
    named = {"targets": maps, "labels": labels, "images": images}
    streams = [as_stream(network(), data, "data") for data in ((images, labels, maps), named)]
    assert streams[0].fingerprint() == streams[1].fingerprint() == Arrays(named, 3).fingerprint()
    # as validation, where maps are not needed
    options = {"validation": (images, labels, maps), "epochs": 1}
    [record] = trained(one_layer(6, 6, 1), [images, labels, maps], CrossEntropy() + MAPS, **options)
    assert record["validation_loss"] > 0


def test_gradients_turn_towards_the_maps():
    images, labels, _ = pictures()
    maps = np.random.default_rng(0).normal(size=(3, 6, 6, 1))[labels]
    records = trained(network(), (images, labels, maps), CrossEntropy() + MAPS, epochs=30, rate=0.1)
    assert records[-1]["cosine"] > 0.8 > 0.3 > records[0]["cosine"]


def test_both_norm_scales_on_two_devices_end_as_on_one():
    Child(gradient_penalties.on_one_and_on_two).finished()


@dataclasses.dataclass(frozen=True)
class Draws(Term):
    """The seed of the pass, as a value."""

    measured_names = ("first", "step")

    def measured(self, batch):
        seed = tf.cast(batch.seed, tf.float32)
        return {"first": seed[0], "step": seed[1]}

    def __call__(self, batch):
        return 0.0 * tf.reduce_mean(batch.logits)


def test_every_step_draws_other_projections():
    """One image, no learning: the estimates vary by the draws alone."""
    images, labels, _ = pictures()
    data = np.repeat(images[:1], 48, axis=0), np.repeat(labels[:1], 48)
    objective = JacobianRegularization(1.0, projections=1) + Draws()
    options = {"rate": 0.0, "batch_size": 1, "epochs": 2}
    one, two = (
        trained(one_layer(6, 6, 1), data, objective, seed=seed, **options) for seed in (0, 1)
    )
    assert [record["step"] for record in one] == [23.5, 71.5]
    assert one[0]["first"] == one[1]["first"] != two[0]["first"]
    values = [record["jacobian_norm"] for record in (*one, *two)]
    assert len(set(values)) == 4
    kernel = one_layer(6, 6, 1).get_weights()[0]
    assert 0.85 < np.mean(values) / np.linalg.norm(kernel) < 1


def test_gradients_are_those_at_adversarial_images():
    images, labels, maps = pictures()
    threat = ThreatModel(norm=2, epsilon=0.5, steps=2)
    terms = MAPS + JacobianRegularization(0.1)
    objective = CrossEntropy() + terms + AdversarialTraining(threat)
    record = one_step((images, labels, maps), objective)
    model = network()
    found = pgd(model, images, labels, norm=2, epsilon=0.5, steps=2, stop="last")

    def measured(x):
        arrays = {"images": x, "labels": labels.astype("int32"), "targets": maps}
        tensors = {name: tf.constant(array) for name, array in arrays.items()}
        return terms.measured(forward(terms, model, tensors))

    adversarial, clean = measured(images + found.perturbation), measured(images)
    for name in MEASURED:
        assert record[name] == pytest.approx(float(adversarial[name]), rel=1e-3, abs=1e-6)
    assert abs(record["cosine"] - clean["cosine"]) > 100 * abs(
        record["cosine"] - adversarial["cosine"]
    )
    assert record["adversarial_accuracy"] == pytest.approx(1 - found.success_rate)


def test_half_precision():
    reference = trained(network(), augmented(), BOTH)
    for policy in ("mixed_bfloat16", "mixed_float16"):
        with computing_in(policy):
            model = network()
        records = trained(model, augmented(), BOTH)
        for name in ("cross_entropy", "gradient_norm", "jacobian_norm"):
            assert records[0][name] == pytest.approx(reference[0][name], rel=0.1)
        assert records[0]["cosine"] == pytest.approx(reference[0]["cosine"], abs=0.05)
        pairs = zip(weights_of(network()), weights_of(model), strict=True)
        assert 0 < max(abs(a - b).max() for a, b in pairs) < 1
    assert records[-1]["loss_scale"] >= 1
    assert records[-1]["skipped_steps"] < 4


def test_small_gradients_survive_half_precision():
    """Of 1e-7 and less, which float16 cannot hold without the loss scale."""
    images, labels, maps = pictures()
    arrays = {"images": images, "labels": labels.astype("int32"), "targets": maps}
    tensors = {name: tf.constant(array) for name, array in arrays.items()}
    terms = MAPS + JacobianRegularization(0.1, projections=2)

    def measured(policy, scale=None):
        with computing_in(policy):
            model = network()
        model.layers[-1].kernel.assign(model.layers[-1].kernel * 1e-4)
        model.layers[0].kernel.assign(model.layers[0].kernel * 1e-4)
        found = terms.measured(forward(terms, model, tensors, scale=scale))
        return [float(found[name]) for name in ("cosine", "gradient_norm", "jacobian_norm")]

    full, scaled = measured("float32"), measured("mixed_float16", tf.constant(2.0**15))
    assert scaled == pytest.approx(full, rel=0.02)
    assert measured("mixed_float16") != pytest.approx(full, rel=0.1)


def test_two_terms_of_a_kind_need_names():
    images, labels, maps = pictures()
    with pytest.raises(InputError, match=r"two terms named 'interpretation_regularization'"):
        CrossEntropy() + MAPS + InterpretationRegularization(2.0, 0.0)
    second = InterpretationRegularization(2.0, 0.0, threshold=1.0).named("second")
    objective = CrossEntropy() + MAPS + second
    record = one_step((images, labels, maps), objective, one_layer(6, 6, 1))
    assert record["second_gradient_norm"] == record["gradient_norm"]
    assert record["second"] == pytest.approx(-2 * record["second_cosine"], rel=1e-5)
    assert record["second_cosine"] != record["cosine"]
    with pytest.raises(InputError, match="two columns 'cosine'"):
        MAPS + CrossEntropy().named("cosine")
    with pytest.raises(InputError, match="records have a column of that name"):
        one_step((images, labels, maps), Objective((MAPS.named("validation"),)))


def test_a_schedule_may_monitor_what_is_measured():
    images, labels, maps = pictures()
    schedule = Plateau(0.1, monitor="cosine", patience=1, minimum_improvement=100.0)
    model, data = one_layer(6, 6, 1), (images, labels, maps)
    records = trained(model, data, CrossEntropy() + MAPS, epochs=3, schedule=schedule)
    assert records[2]["learning_rate"] == pytest.approx(0.01)
    with pytest.raises(InputError, match="monitors 'cosine', but records have only"):
        trained(network(), (images, labels), CrossEntropy(), schedule=schedule)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.ones((48, 6, 6)), r"targets have shape \(6, 6\), images \(6, 6, 1\): a target map"),
        (np.ones((48, 5, 6, 1)), r"targets have shape \(5, 6, 1\), images"),
        (np.ones((47, 6, 6, 1)), "targets must have one row per image, 48, got shape"),
        (np.full((48, 6, 6, 1), np.nan), "targets has NaN or infinite values"),
        (np.full((48, 6, 6, 1), "a"), "targets must be numbers"),
        (None, "targets must be numbers"),
    ],
)
def test_bad_targets(targets, message):
    images, labels, _ = pictures()
    with pytest.raises(InputError, match=message):
        trained(network(), (images, labels, targets), CrossEntropy() + MAPS)


def test_missing_targets_and_tuples_of_another_length():
    images, labels, maps = pictures()
    with pytest.raises(InputError, match="reads the tensor 'targets', but the data has only"):
        trained(network(), (images, labels), CrossEntropy() + MAPS)
    for data in ((images,), (images, labels, maps, maps), images, None):
        with pytest.raises(InputError, match="images and labels, a triple with target maps"):
            trained(network(), data, CrossEntropy())
    with pytest.raises(InputError, match=r"data labels must have shape \(48,\)"):
        trained(network(), (images, maps, labels), CrossEntropy())


def test_models_of_other_inputs_than_images():
    """Vectors have maps too."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(48, 4)), rng.integers(0, 3, 48)
    model = one_layer(4)
    objective = CrossEntropy() + MAPS + JacobianRegularization(0.1)
    record = one_step((x, labels, x), objective, model)
    kernel = model.get_weights()[0]
    assert record["jacobian_norm"] == pytest.approx(np.linalg.norm(kernel), rel=1e-5)
    norms = np.linalg.norm(kernel, axis=0)[labels]
    assert record["gradient_norm"] == pytest.approx(norms.mean(), rel=1e-5)
