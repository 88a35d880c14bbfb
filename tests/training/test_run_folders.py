"""The folder of `fit`: what it refuses, what damaged checkpoints say, one process at a time."""

import io
import json
import shutil
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.processes import Child
from helpers.small_training import run_to, sgd, small_data, weights_of

from tfrobust import locks
from tfrobust.errors import StorageError, TfrobustError
from tfrobust.locks import FolderInUseError, FolderLostError
from tfrobust.objectives import CrossEntropy, DoubleBackprop, Objective
from tfrobust.training import (
    DamagedCheckpointError,
    SettingsChangedError,
    StepDecay,
    checkpoints,
    computing_in,
    fit,
)

layers = keras.layers


def network(activation="relu"):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Flatten(),
            layers.Dense(4, activation=activation),
            layers.Dense(3),
        ]
    )


def train(folder, model=None, epochs=1, optimizer=None, **changes):
    options = {"batch_size": 30, "progress": False, **changes}
    model = network() if model is None else model
    return fit(
        model,
        small_data(),
        CrossEntropy(),
        optimizer=optimizer or sgd(),
        epochs=epochs,
        folder=folder,
        **options,
    )


def test_another_activation_or_precision_is_refused(tmp_path):
    train(tmp_path)
    train(tmp_path)
    with pytest.raises(SettingsChangedError, match="another architecture"):
        train(tmp_path, network("tanh"), epochs=2)
    with computing_in("mixed_bfloat16"):
        model = network()
    with pytest.raises(SettingsChangedError, match=r"another precision: \['float32'\], now"):
        train(tmp_path, model, epochs=2)


def test_checkpoints_of_earlier_versions_are_resumed(tmp_path):
    train(tmp_path)
    path = checkpoints.newest(tmp_path)
    state, values = checkpoints.read(path)
    for key in ("architecture", "precision"):
        del state["settings"][key]
    np.savez(path, state=np.array(json.dumps(state)), **values)
    assert len(train(tmp_path, epochs=2).records) == 2


def test_fewer_epochs_are_refused(tmp_path):
    run_to(tmp_path, 3)
    with pytest.raises(SettingsChangedError, match="holds training in epoch 3, now epochs=2"):
        run_to(tmp_path, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"epochs": -1}, "epochs must be"),
        ({"epochs": 1.5}, "epochs must be"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"batch_size": -5}, "batch_size must be"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
    ],
)
def test_settings_out_of_range(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_an_empty_objective():
    with pytest.raises(ValueError, match="nothing to minimise"):
        fit(network(), small_data(), Objective(()), optimizer=sgd(), epochs=1, batch_size=30)


def test_numbers_of_numpy_are_settings(tmp_path):
    changes = {"seed": np.int64(1), "batch_size": np.int32(30), "epochs": np.int64(1)}
    changes["schedule"] = StepDecay(np.float32(0.05), every=np.int64(2))
    objective = CrossEntropy() + DoubleBackprop(np.float32(0.1))
    histories = [
        fit(
            network(),
            small_data(),
            objective,
            optimizer=keras.optimizers.Adam(0.01, epsilon=np.float32(1e-7)),
            folder=tmp_path,
            **changes,
        )
        for _ in range(2)
    ]
    assert histories[0] == histories[1]


def test_an_older_step_does_not_delete_itself(tmp_path):
    sets = {"model": network().variables}
    for step in (10, 20, 5):
        path = checkpoints.save(tmp_path, step, sets, {})
        assert path.exists()
    assert sorted(map(checkpoints.step_of, tmp_path.glob("step-*.npz"))) == [5, 20]


def test_bfloat16_comes_back(tmp_path):
    variable = keras.Variable(np.float32([1.0, -2.5, 3e-30]), dtype="bfloat16", name="v")
    path = checkpoints.save(tmp_path, 1, {"model": [variable]}, {})
    before = np.asarray(variable.value).astype(np.float32)
    variable.assign(np.zeros(3))
    checkpoints.assign(checkpoints.read(path)[1], {"model": [variable]})
    np.testing.assert_array_equal(np.asarray(variable.value).astype(np.float32), before)
    # as earlier versions wrote it
    raw = keras.ops.convert_to_numpy(variable)
    np.savez(path, state=np.array("{}"), **{"model.0000.v": raw})
    variable.assign(np.zeros(3))
    checkpoints.assign(checkpoints.read(path)[1], {"model": [variable]})
    np.testing.assert_array_equal(np.asarray(variable.value).astype(np.float32), before)


def test_nothing_is_assigned_where_the_last_value_is_no_number(tmp_path):
    model = network()
    path = checkpoints.save(tmp_path, 1, {"model": model.variables}, {})
    _, values = checkpoints.read(path)
    last = max(values)
    values = {key: value + 1 for key, value in values.items()}
    values[last] = np.full(values[last].shape, "a")
    before = weights_of(model)
    with pytest.raises(DamagedCheckpointError, match="another model"):
        checkpoints.assign(values, {"model": model.variables})
    for one, other in zip(before, weights_of(model), strict=True):
        np.testing.assert_array_equal(one, other)


def rewritten(path, change):
    """The checkpoint with another state."""
    state, values = checkpoints.read(path)
    np.savez(path, state=np.array(json.dumps(change(state))), **values)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: [],
        lambda state: {},
        lambda state: {**state, "settings": 3},
        lambda state: {**state, "records": 3},
        lambda state: {**state, "records": [3]},
        lambda state: {**state, "progress": {"nothing": 3}},
        lambda state: {**state, "progress": 3},
    ],
)
def test_a_damaged_state_is_named(tmp_path, change):
    train(tmp_path)
    path = checkpoints.newest(tmp_path)
    rewritten(path, change)
    with pytest.raises(DamagedCheckpointError, match=rf"{path} is damaged .* Delete it"):
        train(tmp_path, epochs=2)


def test_every_damaged_byte_of_a_checkpoint_is_named(tmp_path):
    train(tmp_path)
    path = checkpoints.newest(tmp_path)
    whole, expected = path.read_bytes(), checkpoints.read(path)[1]
    directory = whole.index(b"PK\1\2")
    rng = np.random.default_rng(0)
    places = [*range(0, 40), *range(directory, len(whole)), *rng.integers(0, len(whole), 100)]
    for place in places:
        for flip in (1, 0xFF):
            damaged = bytearray(whole)
            damaged[place] ^= flip
            path.write_bytes(damaged)
            try:
                _, values = checkpoints.read(path)
            except DamagedCheckpointError as error:  # anything else is a traceback
                assert path.name in str(error)
                continue
            for key, value in values.items():
                if key in expected:  # another key is another model's
                    np.testing.assert_array_equal(value, expected[key])


@pytest.mark.parametrize("way", ["encrypted", "method", "nested", "pickle"])
def test_strange_archives_are_damaged_checkpoints(tmp_path, way):
    train(tmp_path)
    path = checkpoints.newest(tmp_path)
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\1\2")
    if way == "encrypted":
        content[directory + 8] |= 1
    elif way == "method":
        content[directory + 10] = 99
    elif way == "nested":
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("state.npy", b"\x93NUMPY\1\0")
        content = stream.getvalue()
    else:
        stream = io.BytesIO()
        np.savez(stream, state=np.array([{}], object))
        content = stream.getvalue()
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=path.name):
        train(tmp_path, epochs=2)


def _train_in(folder, code):
    try:
        train(folder, epochs=2)
    except FolderInUseError as error:
        print(error)
        raise SystemExit(code) from None


def test_a_second_process_is_refused_while_the_first_trains(tmp_path):
    statuses = []

    def second(record, model):
        if not statuses:
            child = Child(_train_in, tmp_path, 7)
            statuses.append(child.wait())
            assert f"{tmp_path} is in use by process" in child.printed()

    train(tmp_path, epochs=2, callbacks=[second])
    assert statuses == [7]
    assert not (tmp_path / ".lock").exists()
    Child(_train_in, tmp_path, 7).finished()


def test_a_second_call_is_refused_while_the_first_trains(tmp_path):
    def second(record, model):
        with pytest.raises(FolderInUseError, match="another call in this process"):
            train(tmp_path)

    train(tmp_path, callbacks=[second])


def test_an_error_releases_the_folder(tmp_path):
    def fail(record, model):
        raise TfrobustError("stop")

    with pytest.raises(TfrobustError) as caught:
        train(tmp_path, callbacks=[fail])
    assert not (tmp_path / ".lock").exists()
    assert caught.value is not None
    Child(_train_in, tmp_path, 7).finished()


@pytest.mark.parametrize("checkpoint_every", [None, 1])
def test_a_folder_deleted_during_training_is_not_made_again(tmp_path, checkpoint_every):
    folder = tmp_path / "run"
    with pytest.raises(FolderLostError, match="was deleted or replaced"):
        train(
            folder,
            epochs=2,
            callbacks=[lambda record, model: shutil.rmtree(folder)],
            checkpoint_every=checkpoint_every,
        )
    assert not folder.exists()


def test_leftovers_of_killed_training_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_PATIENCE", 0.1)
    (tmp_path / ".partial-1-last.keras").write_text("half")
    (tmp_path / ".partial-abc").mkdir()
    (tmp_path / ".partial-abc" / "last.keras").write_text("half")
    train(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_tensorboard_has_one_file_per_call(tmp_path):
    train(tmp_path, epochs=3)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_a_disk_that_fills_in_tensorboard(tmp_path, monkeypatch):
    def full(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    train(tmp_path)
    monkeypatch.setattr(tf.summary, "scalar", full)
    with pytest.raises(StorageError, match=r"could not write .*tensorboard: No space left"):
        train(tmp_path, epochs=2)
    monkeypatch.undo()
    assert len(train(tmp_path, epochs=2).records) == 2
