"""The training loop against NumPy, and what is left when a run is killed or goes wrong."""

import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import train_and_be_killed, two_replicas
from helpers.processes import Child
from helpers.small_training import run_to, sgd, small_data, small_model, weights_of

from tfrobust import training
from tfrobust.objectives import CrossEntropy, DoubleBackprop, WeightDecay
from tfrobust.training import NonFiniteLossError, SettingsChangedError, checkpoints, evaluate, fit
from tfrobust.training.loop import Loop
from tfrobust.training.schedules import Cosine, Plateau, StepDecay

layers = keras.layers


def assert_same_weights(one, other):
    for a, b in zip(weights_of(one), weights_of(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_linear_classifier_against_numpy():
    """Softmax regression by momentum SGD with step decay and weight decay, in NumPy."""
    rng = np.random.default_rng(3)
    x, labels = rng.normal(size=(70, 5)), rng.integers(0, 3, 70)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3)])
    kernel, bias = (w.astype(float) for w in model.get_weights())
    fit(
        model,
        (x, labels),
        CrossEntropy() + WeightDecay(0.01),
        optimizer=sgd(),
        epochs=5,
        batch_size=20,
        schedule=StepDecay(0.1, every=2),
        seed=4,
    )
    velocity = [np.zeros_like(kernel), np.zeros_like(bias)]
    for epoch in range(5):
        rate = 0.1 * 0.1 ** (epoch // 2)
        order = np.random.default_rng([4, epoch]).permutation(70)
        for step in range(3):
            rows = order[20 * step : 20 * step + 20]
            z = x[rows] @ kernel + bias
            p = np.exp(z - z.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            error = (p - np.eye(3)[labels[rows]]) / 20
            slopes = x[rows].T @ error + 0.02 * kernel, error.sum(0) + 0.02 * bias
            velocity = [0.9 * v - rate * g for v, g in zip(velocity, slopes, strict=True)]
            kernel, bias = kernel + velocity[0], bias + velocity[1]
    np.testing.assert_allclose(model.get_weights()[0], kernel, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.get_weights()[1], bias, rtol=1e-4, atol=1e-6)


def test_it_learns_and_reports():
    model, data = small_model(), small_data()
    seen = []
    history = fit(
        model,
        data,
        CrossEntropy() + DoubleBackprop(0.1) + WeightDecay(1e-4),
        optimizer=sgd(),
        epochs=6,
        batch_size=30,
        validation=data,
        callbacks=[lambda record, _: seen.append(record["epoch"])],
    )
    frame = history.to_frame()
    assert list(frame["epoch"]) == seen == [1, 2, 3, 4, 5, 6]
    parts = {"cross_entropy", "double_backprop", "weight_decay", "accuracy", "learning_rate"}
    assert parts <= set(frame)
    assert frame["accuracy"].iloc[-1] > 0.9
    assert frame["cross_entropy"].iloc[-1] < frame["cross_entropy"].iloc[0] / 2
    last = {k: frame[f"validation_{k}"].iloc[-1] for k in ("loss", "accuracy")}
    assert evaluate(model, *data) == pytest.approx(last)


def test_named_terms_have_columns_of_their_own():
    halves = CrossEntropy(0.5) + CrossEntropy(0.5).named("other_half")
    histories, models = [], []
    for objective in (CrossEntropy(), halves):
        models.append(small_model(dropout=0))
        options = {"optimizer": sgd(), "epochs": 1, "batch_size": 30}
        histories.append(fit(models[-1], small_data(), objective, **options).to_frame())
    columns = histories[1][["cross_entropy", "other_half"]]
    half = histories[0]["cross_entropy"].iloc[0] / 2
    np.testing.assert_allclose(columns, [[half, half]], rtol=1e-5)
    for one, other in zip(*map(weights_of, models), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    for name in ("accuracy", "validation_loss"):
        with pytest.raises(ValueError, match=f"cannot be named '{name}'"):
            fit(models[0], small_data(), CrossEntropy().named(name), **options)


def test_evaluate_against_numpy():
    model, (x, labels) = small_model(), small_data()
    z = np.asarray(model(x, training=False)).astype(float)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    found = evaluate(model, x, labels, batch_size=7)
    expected = -np.log(p[np.arange(len(x)), labels]).mean()
    assert found["loss"] == pytest.approx(expected, rel=1e-4)
    assert found["accuracy"] == pytest.approx((z.argmax(1) == labels).mean())


def test_a_softmax_head_is_trained_at_its_logits():
    data, results = small_data(), []
    for softmax in (False, True):
        model = small_model()
        whole = keras.Sequential([model, layers.Softmax()]) if softmax else model
        fit(whole, data, CrossEntropy(), optimizer=sgd(), epochs=2, batch_size=30)
        results.append(model)
    for a, b in zip(weights_of(results[0]), weights_of(results[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    whole, history = run_to(tmp_path / "whole", 5)
    run_to(tmp_path / "parts", 2)
    parts, resumed = run_to(tmp_path / "parts", 5)
    assert_same_weights(whole, parts)
    without_time = [{k: v for k, v in r.items() if k != "seconds"} for r in history.records]
    assert without_time == [{k: v for k, v in r.items() if k != "seconds"} for r in resumed.records]
    again, _ = run_to(tmp_path / "parts", 5)
    assert_same_weights(whole, again)


def run(*args):
    """The helper in a process of its own: its exit status."""
    child = Child(train_and_be_killed.main, *args)
    assert child.wait() in (0, -signal.SIGKILL), child.printed()[-3000:]
    return child.returncode


@pytest.mark.parametrize(
    ("kind", "kills"),
    [
        # the checkpoint of step 35 is not there yet: 28, the fifth step of the second epoch, is
        ("arrays", [("while", 35, 28, 5)]),
        ("two_devices", [("after", 35, 35, 12)]),
        pytest.param("images", [("after", 14, 14, 14)], marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_inside_epochs_ends_as_one_never_killed(kind, kills, tmp_path):
    """Weights and records bit for bit, with batch normalisation, dropout and corrupt images.

    An epoch has 23 steps and a checkpoint comes every 7, so that groups of steps are cut too.
    """
    folder = tmp_path / "killed"
    for moment, step, newest, in_epoch in kills:
        assert run(kind, folder, moment, step) == -signal.SIGKILL
        path = checkpoints.newest(folder)
        state, values = checkpoints.read(path)
        assert (checkpoints.step_of(path), state["progress"]["steps"]) == (newest, in_epoch)
        assert any(key.startswith("replicas") for key in values) == (kind == "two_devices")
    assert run(kind, folder, "never") == 0
    with np.load(tmp_path / "whole.npz") as one, np.load(tmp_path / "resumed.npz") as other:
        assert one.files == other.files
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])


def test_what_the_folder_holds(tmp_path):
    model, history = run_to(tmp_path, 4)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "best.keras",
        "last.keras",
        "step-000000009.npz",
        "step-000000012.npz",
        "tensorboard",
    }
    x = small_data(30, seed=9)[0]
    last = keras.saving.load_model(tmp_path / "last.keras", safe_mode=True)
    np.testing.assert_array_equal(np.asarray(last(x)), np.asarray(model(x)))
    best = keras.saving.load_model(tmp_path / "best.keras", safe_mode=True)
    losses = [record["validation_loss"] for record in history.records]
    found = evaluate(best, *small_data(30, seed=9))["loss"]
    assert found == pytest.approx(min(losses), rel=1e-6)


def test_tensorboard_holds_every_part_of_every_epoch(tmp_path):
    _, history = run_to(tmp_path, 3)
    found = {}
    for path in sorted((tmp_path / "tensorboard").iterdir()):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                found[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    for record in history.records:
        for name, value in record.items():
            assert found[name, record["epoch"]] == pytest.approx(value, rel=1e-5)


def test_a_non_finite_loss_names_where_and_keeps_the_checkpoint(tmp_path):
    model, _ = run_to(tmp_path, 2)
    good = weights_of(model)
    broken = small_model()
    with pytest.raises(NonFiniteLossError) as error:
        fit(
            broken,
            small_data(),
            CrossEntropy() + DoubleBackprop(0.1),
            optimizer=sgd(),
            epochs=4,
            batch_size=30,
            schedule=StepDecay(0.05, every=2, factor=1e30),
            folder=tmp_path / "other",
            seed=1,
        )
    message = str(error.value)
    assert "epoch 3, step" in message
    assert "double_backprop" in message
    assert "'weight': 0.1" in message
    assert "Learning rate 5e+28" in message
    assert checkpoints.newest(tmp_path / "other").name == "step-000000006.npz"
    # the model in memory is the last good one
    assert all(np.isfinite(w).all() for w in weights_of(broken))
    _, values = checkpoints.read(checkpoints.newest(tmp_path / "other"))
    np.testing.assert_array_equal(weights_of(broken)[0], values["model.0000.kernel"])
    assert len(good) == len(weights_of(broken))


def test_a_truncated_checkpoint_is_named_and_the_one_before_is_resumed(tmp_path):
    whole, _ = run_to(tmp_path / "whole", 4)
    run_to(tmp_path / "cut", 3)
    newest = checkpoints.newest(tmp_path / "cut")
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    with pytest.raises(checkpoints.DamagedCheckpointError) as error:
        run_to(tmp_path / "cut", 4)
    assert str(newest) in str(error.value)
    assert "Delete it to resume from step-000000006.npz" in str(error.value)
    newest.unlink()
    resumed, _ = run_to(tmp_path / "cut", 4)
    assert_same_weights(whole, resumed)


def test_one_flipped_byte_is_damage(tmp_path):
    run_to(tmp_path, 1)
    path = checkpoints.newest(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(checkpoints.DamagedCheckpointError, match="start again"):
        run_to(tmp_path, 2)


def test_a_checkpoint_of_another_model(tmp_path):
    run_to(tmp_path, 1)
    _, values = checkpoints.read(checkpoints.newest(tmp_path))
    wider = keras.Sequential([keras.Input((6, 6, 1)), layers.Flatten(), layers.Dense(3)])
    optimizer = sgd()
    optimizer.build(wider.trainable_variables)
    with pytest.raises(checkpoints.DamagedCheckpointError, match="another model"):
        checkpoints.assign(values, {"model": wider.variables, "optimizer": optimizer.variables})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 45}, "batch_size: 30, now 45"),
        ({"seed": 2}, "seed: 1, now 2"),
        ({"schedule": StepDecay(0.01, every=2)}, "schedule"),
    ],
)
def test_other_settings_in_the_same_folder(tmp_path, changes, named):
    run_to(tmp_path, 1)
    with pytest.raises(SettingsChangedError, match=named):
        run_to(tmp_path, 2, **changes)


def test_other_data_in_the_same_folder(tmp_path):
    run_to(tmp_path, 1)
    images, labels = small_data()
    images[5, 0, 0, 0] += 1e-3
    with pytest.raises(SettingsChangedError, match="another data"):
        run_to(tmp_path, 2, (images, labels))


def test_more_epochs_unless_the_rates_rest_on_their_number(tmp_path):
    run_to(tmp_path / "steps", 1)
    run_to(tmp_path / "steps", 2)
    run_to(tmp_path / "cosine", 1, schedule=Cosine(0.1))
    with pytest.raises(SettingsChangedError, match="epochs"):
        run_to(tmp_path / "cosine", 2, schedule=Cosine(0.1))


def test_plateau_monitors_validation():
    with pytest.raises(ValueError, match="give validation"):
        fit(
            small_model(),
            small_data(),
            CrossEntropy(),
            optimizer=sgd(),
            epochs=1,
            schedule=Plateau(0.1),
            batch_size=30,
        )


def test_a_schedule_monitors_a_column_of_the_records():
    options = {"optimizer": sgd(), "epochs": 3, "batch_size": 30}
    with pytest.raises(ValueError, match="monitors 'double_backprop', but records have only cross"):
        schedule = Plateau(0.1, monitor="double_backprop")
        fit(small_model(), small_data(), CrossEntropy(), schedule=schedule, **options)
    schedule = Plateau(0.1, patience=1, minimum_improvement=100.0, monitor="cross_entropy")
    history = fit(small_model(), small_data(), CrossEntropy(), schedule=schedule, **options)
    assert list(history.to_frame()["learning_rate"]) == pytest.approx([0.1, 0.1, 0.01])


def test_checkpoints_inside_epochs_need_a_folder_and_a_number():
    options = {"optimizer": sgd(), "epochs": 1, "batch_size": 30}
    for every, message in ((0, "checkpoint_every"), (2.5, "checkpoint_every"), (2, "a folder")):
        with pytest.raises(ValueError, match=message):
            fit(small_model(), small_data(), CrossEntropy(), checkpoint_every=every, **options)


def test_no_checkpoint_holds_weights_that_are_not_finite(tmp_path):
    """A step can end at infinite weights though its own loss was finite."""
    model = small_model()
    with pytest.raises(NonFiniteLossError, match="epoch 2, step"):
        fit(
            model,
            small_data(),
            CrossEntropy(),
            optimizer=sgd(),
            epochs=3,
            batch_size=30,
            schedule=StepDecay(0.05, every=1, factor=1e39),
            folder=tmp_path,
            checkpoint_every=1,
        )
    assert checkpoints.step_of(checkpoints.newest(tmp_path)) >= 3
    for path in tmp_path.glob("step-*.npz"):
        values = checkpoints.read(path)[1]
        assert all(np.isfinite(value).all() for key, value in values.items() if "model" in key)
    assert all(np.isfinite(weight).all() for weight in weights_of(model))


def test_a_full_disk_loses_no_earlier_epoch(tmp_path, monkeypatch):
    run_to(tmp_path, 2)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match=r"could not write .*step-000000009.npz: No space left"):
        run_to(tmp_path, 3)
    monkeypatch.undo()
    assert checkpoints.newest(tmp_path).name == "step-000000006.npz"
    whole, _ = run_to(tmp_path / "whole", 3)
    resumed, _ = run_to(tmp_path, 3)
    assert_same_weights(whole, resumed)


def test_an_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to the folder"):
        run_to(tmp_path / "file" / "below", 1)


def named(**others):
    return {"images": np.zeros((90, 6, 6, 1)), "labels": np.zeros(90), **others}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((np.zeros((90, 5, 5, 1)), np.zeros(90)), "the model takes"),
        ((np.full((90, 6, 6, 1), np.nan), np.zeros(90)), "NaN"),
        ((np.zeros((90, 6, 6, 1)), np.full(90, 3)), "0..2 for 3 classes"),
        ((np.zeros((90, 6, 6, 1)), np.zeros(80)), "must have shape"),
        ((np.zeros((10, 6, 6, 1)), np.zeros(10)), "do not fill one batch of 30"),
        ((np.zeros((0, 6, 6, 1)), np.zeros(0)), "empty batch"),
        (np.zeros((90, 6, 6, 1)), "must be a pair"),
        ({"images": np.zeros((90, 6, 6, 1))}, "must have images and labels, got images"),
        (named(targets=np.zeros(80)), r"targets must have one row per image, 90, got shape \(80,"),
        (named(targets=np.full(90, np.nan)), "targets has NaN"),
        (named(targets=np.full(90, "a")), "targets must be numbers"),
        (named(**{"a target": np.zeros(90)}), "letters, digits and underscores, got 'a target'"),
    ],
)
def test_bad_data(data, message):
    with pytest.raises(ValueError, match=message):
        fit(small_model(), data, CrossEntropy(), optimizer=sgd(), epochs=1, batch_size=30)


def test_two_replicas_end_with_the_weights_of_one():
    """MirroredStrategy on two virtual devices, penalties included."""
    Child(two_replicas.train_on_one_and_on_two).finished()


def test_history_survives_in_the_checkpoint(tmp_path):
    _, history = run_to(tmp_path, 2)
    state, _ = checkpoints.read(checkpoints.newest(tmp_path))
    assert training.History(tuple(state["records"])) == history


def test_a_keras_schedule_is_recorded_as_it_was_at_the_start_of_a_resumed_epoch(
    tmp_path, monkeypatch
):
    def run(folder):
        rate = keras.optimizers.schedules.ExponentialDecay(0.05, decay_steps=1, decay_rate=0.5)
        options = {"epochs": 2, "batch_size": 30, "checkpoint_every": 2, "folder": folder}
        optimizer = keras.optimizers.SGD(rate)
        return fit(small_model(), small_data(), CrossEntropy(), optimizer=optimizer, **options)

    advance, calls = Loop.advance, []

    def killed_at_the_second_checkpoint(loop, *arguments):
        calls.append(arguments)
        if len(calls) == 4:  # steps 1 and 2, 3, 4, then 5 and 6
            raise KeyboardInterrupt
        advance(loop, *arguments)

    expected = [record["learning_rate"] for record in run(tmp_path / "whole").records]
    np.testing.assert_allclose(expected, [0.05, 0.05 / 8], rtol=1e-6)
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "advance", killed_at_the_second_checkpoint)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed")
    records = run(tmp_path / "killed").records
    assert [record["learning_rate"] for record in records] == expected
