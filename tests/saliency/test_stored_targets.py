"""Stored target maps: resumed after interruptions, and refused for anything they are not of."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers.derivatives import CLASSES, SHAPE, images, network

from tfrobust.classifier import predict_logits
from tfrobust.errors import MissingFileError, StorageError
from tfrobust.locks import FolderInUseError, FolderLostError
from tfrobust.saliency import TargetMaps, gradient, map_files, smoothgrad, stored, target_maps
from tfrobust.saliency.digests import architecture_sha256

layers = keras.layers
COUNT = 22
SETTINGS = {"samples": 3, "sigma": 0.5, "seed": 4, "batch_size": 3, "chunk": 5}


def small():
    keras.utils.set_random_seed(1)
    return network("tanh", "average")


@pytest.fixture(scope="module")
def case():
    model, x = small(), images(COUNT)
    labels = np.random.default_rng(0).integers(0, CLASSES, COUNT)
    assert (predict_logits(model, x).argmax(axis=1) != labels).any()
    return model, x, labels


@pytest.fixture
def finished(case, tmp_path):
    folder = tmp_path / "finished"
    return folder, target_maps(folder, *case, **SETTINGS)


class Killed(BaseException):
    pass


def killed_at(monkeypatch, name, call):
    """Make the function `name` of a module fail when it is called for the `call`-th time."""
    module = stored if hasattr(stored, name) else map_files
    original, calls = getattr(module, name), []

    def function(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, function)
    return calls


def same_bytes(folder, other):
    return (folder / "maps.npy").read_bytes() == (other / "maps.npy").read_bytes()


def test_the_maps_are_those_of_the_true_labels(case, finished, tmp_path):
    model, x, labels = case
    found = finished[1].checked(x, labels)
    whole = smoothgrad(model, x, labels, sigma=0.5, samples=3, seed=4, batch_size=3)
    np.testing.assert_array_equal(found, whole)
    simple = target_maps(tmp_path / "simple", model, x, labels, method="gradient", chunk=8)
    found = simple.checked(x, labels)
    np.testing.assert_allclose(found, gradient(model, x, labels), rtol=1e-4, atol=1e-6)


def test_the_array_is_mapped_and_cannot_be_changed(case, finished):
    found = finished[1].checked(*case[1:])
    assert isinstance(found, np.memmap)
    assert found.dtype == np.float32
    assert found.shape == (COUNT, *SHAPE)
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0


def test_all_options_of_smoothgrad_are_used(case, tmp_path):
    model, x, labels = case
    options = {"sigma": 0.9, "samples": 2, "clip": (-0.5, 0.5), "include_clean": True, "of": "loss"}
    maps = target_maps(tmp_path, model, x, labels, seed=9, **options)
    expected = smoothgrad(model, x, labels, seed=9, **options)
    np.testing.assert_array_equal(maps.checked(x, labels), expected)
    assert maps.provenance["options"] == options | {"clip": [-0.5, 0.5]}


@pytest.mark.parametrize(
    ("name", "call", "rows"),
    [
        ("smoothed_maps", 1, 0),
        ("smoothed_maps", 3, 12),
        # the values are written, but not yet recorded: the record is written first with no rows
        ("atomic_path", 1, 0),
        ("atomic_path", 2, 0),
        ("atomic_path", 5, 12),
    ],
)
def test_maps_are_resumed_with_the_same_bytes(
    case, finished, tmp_path, monkeypatch, name, call, rows
):
    folder = tmp_path / "killed"
    with monkeypatch.context() as patch:
        killed_at(patch, name, call)
        with pytest.raises(Killed):
            target_maps(folder, *case, **SETTINGS)
    if rows:
        with pytest.raises(RuntimeError, match=f"{rows} of {COUNT} target maps: call target_maps"):
            TargetMaps.open(folder)
    calls = killed_at(monkeypatch, "smoothed_maps", None)
    resumed = target_maps(folder, *case, **SETTINGS)
    assert len(calls) == -(-(COUNT - rows) // 6)  # chunks are whole batches
    assert same_bytes(folder, finished[0])
    np.testing.assert_array_equal(resumed.checked(*case[1:]), finished[1].checked(*case[1:]))


def test_another_chunk_gives_the_same_bytes(case, finished, tmp_path):
    target_maps(tmp_path / "other", *case, **SETTINGS | {"chunk": 1})
    assert same_bytes(tmp_path / "other", finished[0])


KILLED_PROCESS = """
import os, signal, sys
import numpy as np
from helpers.derivatives import images
import test_stored_targets as tests
from tfrobust.saliency import stored

original, calls = stored.smoothed_maps, []
def function(*args, **kwargs):
    calls.append(args)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
stored.smoothed_maps = function
labels = np.random.default_rng(0).integers(0, tests.CLASSES, tests.COUNT)
stored.target_maps(sys.argv[1], tests.small(), images(tests.COUNT), labels, **tests.SETTINGS)
"""


def test_a_process_that_is_killed_is_resumed_by_another(case, finished, tmp_path, monkeypatch):
    folder = tmp_path / "killed"
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, [here, here.parent, here.parents[1]]))
    environment = os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", KILLED_PROCESS, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    calls = killed_at(monkeypatch, "smoothed_maps", None)
    target_maps(folder, *case, **SETTINGS)
    assert len(calls) == 2
    assert same_bytes(folder, finished[0])


def test_finished_maps_are_not_computed_again(case, finished, monkeypatch):
    folder, first = finished
    calls = killed_at(monkeypatch, "smoothed_maps", 1)
    # neither the batch size nor the chunk changes what the maps are
    again = target_maps(folder, *case, **SETTINGS | {"batch_size": 7, "chunk": 2})
    assert not calls
    np.testing.assert_array_equal(again.checked(*case[1:]), first.checked(*case[1:]))
    assert TargetMaps.open(str(folder)).provenance == first.provenance


def test_the_provenance_is_plain_data(case, finished):
    provenance = finished[1].provenance
    assert json.loads(json.dumps(provenance)) == provenance
    assert provenance["method"] == "smoothgrad"
    assert provenance["seed"] == 4
    assert provenance["shape"] == [COUNT, *SHAPE]
    assert provenance["versions"]["tfrobust"]
    digests = [provenance[f"{k}_sha256"] for k in ("architecture", "weights", "images", "labels")]
    assert len(set(digests)) == 4
    assert {len(digest) for digest in digests} == {64}
    provenance["options"]["sigma"] = 100
    assert finished[1].provenance["options"]["sigma"] == 0.5
    record = json.loads((finished[0] / "maps.json").read_text())
    assert record["finished_rows"] == COUNT


# what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 0.25}, r"with sigma = 0\.5, now 0\.25"),
        ({"samples": 4}, "with samples = 3, now 4"),
        ({"clip": (0, 1)}, r"with clip = None, now \[0\.0, 1\.0\]"),
        ({"include_clean": True}, "with include_clean = False, now True"),
        ({"of": "loss"}, "with of = logit, now loss"),
        ({"seed": 5}, "with seed = 4, now 5"),
    ],
)
@pytest.mark.parametrize("rows", [12, COUNT])
def test_other_settings_are_refused(case, tmp_path, monkeypatch, rows, change, message):
    if rows < COUNT:
        with monkeypatch.context() as patch:
            killed_at(patch, "smoothed_maps", 3)
            with pytest.raises(Killed):
                target_maps(tmp_path, *case, **SETTINGS)
    else:
        target_maps(tmp_path, *case, **SETTINGS)
    before = (tmp_path / "maps.npy").read_bytes()
    with pytest.raises(ValueError, match=f"{message}. Give another folder"):
        target_maps(tmp_path, *case, **SETTINGS | change)
    assert (tmp_path / "maps.npy").read_bytes() == before
    target_maps(tmp_path, *case, **SETTINGS)


def test_another_method_model_or_data_are_refused(case, finished):
    model, x, labels = case
    folder = finished[0]
    with pytest.raises(ValueError, match="with method = smoothgrad, now gradient"):
        target_maps(folder, *case, method="gradient")

    def refused(message, model=model, x=x, labels=labels):
        with pytest.raises(ValueError, match=message):
            target_maps(folder, model, x, labels, **SETTINGS)

    other = small()
    moving = other.get_layer("normalization").moving_mean
    moving.assign(moving + 1e-4)
    refused("of other weights of the model", other)
    other = network("sigmoid", "average")
    other.set_weights(model.get_weights())
    refused("of other architecture of the model", other)
    changed = x.copy()
    changed[7, 2, 2, 1] += 1e-3
    refused("of other images", x=changed)
    refused("of other images", x=x[::-1])
    refused("of other labels", labels=np.roll(labels, 1))
    refused(r"with shape = \[22, 6, 5, 2\], now \[21, 6, 5, 2\]", x=x[1:], labels=labels[1:])


def test_maps_begun_by_another_version_are_not_mixed(case, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        killed_at(patch, "smoothed_maps", 3)
        with pytest.raises(Killed):
            target_maps(tmp_path, *case, **SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(stored, "_version", lambda package: "99")
        with pytest.raises(ValueError, match=r"with tfrobust = .*, now 99"):
            target_maps(tmp_path, *case, **SETTINGS)
    target_maps(tmp_path, *case, **SETTINGS)
    monkeypatch.setattr(stored, "_version", lambda package: "99")
    assert target_maps(tmp_path, *case, **SETTINGS).provenance["versions"]["tfrobust"] != "99"


def test_the_same_model_in_another_object_is_accepted(case, finished, tmp_path):
    model, x, labels = case
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    again = small()  # layers with automatic names of other numbers
    assert [each.name for each in again.layers] != [each.name for each in model.layers]
    again.compile("sgd", "mse")
    again.trainable = False
    for same in (loaded, again):
        target_maps(finished[0], same, x, labels, **SETTINGS)


def residual(skip_from):
    inputs = keras.Input((4,))
    hidden = [layers.Dense(4)(inputs)]
    hidden.append(layers.Dense(4)(hidden[0]))
    hidden.append(layers.Dense(4)(hidden[1]))
    return keras.Model(inputs, layers.Add()([hidden[skip_from], hidden[2]]))


def test_the_architecture_tells_connections_apart():
    """Layers that differ in their number only are not confused."""
    assert architecture_sha256(residual(0)) == architecture_sha256(residual(0))
    assert architecture_sha256(residual(0)) != architecture_sha256(residual(1))


class NotSerializable(layers.Layer):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def call(self, inputs):
        return self.scale * inputs


def test_a_model_without_a_configuration_has_a_digest():
    def build(*more):
        return keras.Sequential([keras.Input((3,)), NotSerializable(2.0), *more, layers.Dense(2)])

    assert architecture_sha256(build()) == architecture_sha256(build())
    assert architecture_sha256(build()) != architecture_sha256(build(layers.ReLU()))


def test_checked_refuses_other_data(case, finished):
    _, x, labels = case
    maps = finished[1]
    assert maps.checked(x.astype(np.float64), labels.astype(np.uint8)).shape == x.shape
    changed = x.copy()
    changed[-1, 0, 0, 0] += 1e-3
    for wrong in (changed, x[::-1]):
        with pytest.raises(ValueError, match="are of other images: give those that they were"):
            maps.checked(wrong, labels)
    with pytest.raises(ValueError, match="are of other labels"):
        maps.checked(x, (labels + 1) % CLASSES)
    with pytest.raises(ValueError, match="Give class indices, not one-hot rows"):
        maps.checked(x, np.eye(CLASSES)[labels])
    with pytest.raises(ValueError, match="labels must be whole numbers"):
        maps.checked(x, labels + 0.5)
    for wrong in (x[:-1], x[..., :1], np.full(x.shape, "a")):
        with pytest.raises(ValueError, match=r"are of images \(22, 6, 5, 2\), got"):
            maps.checked(wrong, labels)


# damage, full disks and bad input ----------------------------------------------------------------


def truncated(path):
    path.write_bytes(path.read_bytes()[:-5])


def changed_in_the_middle(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def pickled(path):
    path.unlink()
    np.save(path, np.array([{}] * COUNT, object), allow_pickle=True)


def of_another_shape(path):
    np.save(path, np.zeros((COUNT, 2), np.float32))


def of_double_precision(path):
    np.save(path, np.load(path).astype(np.float64))


@pytest.mark.parametrize(
    "damage",
    [truncated, changed_in_the_middle, pickled, of_another_shape, of_double_precision, os.remove],
)
@pytest.mark.parametrize("rows", [12, COUNT])
def test_a_damaged_file_is_reported(case, tmp_path, monkeypatch, damage, rows):
    with monkeypatch.context() as patch:
        killed_at(patch, "smoothed_maps", 3 if rows < COUNT else None)
        with pytest.raises(Killed) if rows < COUNT else contextlib.nullcontext():
            target_maps(tmp_path, *case, **SETTINGS)
    damage(tmp_path / "maps.npy")
    remedy = r"maps\.npy is damaged .*Delete maps\.npy and maps\.json in this folder"
    with pytest.raises(RuntimeError, match=remedy):
        target_maps(tmp_path, *case, **SETTINGS)
    if rows == COUNT:
        with pytest.raises(RuntimeError, match=remedy):
            TargetMaps.open(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: "{",
        lambda record: "[]",
        lambda record: json.dumps({"finished_rows": 22}),
        lambda record: json.dumps(record | {"finished_rows": 21}),
        lambda record: json.dumps(record | {"chunks": record["chunks"][::-1]}),
        lambda record: json.dumps(record | {"provenance": {}}),
    ],
)
def test_a_damaged_record_is_reported(case, finished, change):
    path = finished[0] / "maps.json"
    path.write_text(change(json.loads(path.read_text())))
    for call in (
        lambda: TargetMaps.open(finished[0]),
        lambda: target_maps(finished[0], *case, **SETTINGS),
    ):
        with pytest.raises(RuntimeError, match=r"maps\.json is damaged .*Delete maps\.npy"):
            call()


def test_missing_maps_and_files_of_others(case, tmp_path):
    with pytest.raises(MissingFileError, match="holds no target maps: compute them"):
        TargetMaps.open(tmp_path / "nothing")
    np.save(tmp_path / "maps.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"a maps\.npy without maps\.json, of unknown origin"):
        target_maps(tmp_path, *case, **SETTINGS)
    assert np.load(tmp_path / "maps.npy").shape == (3,)


def no_space(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_noticed_before_anything_is_computed(case, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        calls = killed_at(patch, "smoothed_maps", 1)
        patch.setattr(os, "posix_fallocate", no_space)
        with pytest.raises(StorageError, match=r"could not write .*maps\.npy: No space left"):
            target_maps(tmp_path, *case, **SETTINGS)
    assert not calls
    assert [path.name for path in tmp_path.iterdir()] == ["maps.json"]
    target_maps(tmp_path, *case, **SETTINGS)


def test_a_full_disk_loses_nothing(case, finished, tmp_path, monkeypatch):
    folder = tmp_path / "full"
    original, writes = map_files.Record.write, []

    def write(record, folder):
        writes.append(record.finished)
        if record.finished == 18:
            no_space()
        original(record, folder)

    with monkeypatch.context() as patch:
        patch.setattr(map_files.Record, "write", write)
        with pytest.raises(OSError, match="No space left"):
            target_maps(folder, *case, **SETTINGS)
    assert writes == [0, 6, 12, 18]
    calls = killed_at(monkeypatch, "smoothed_maps", None)
    target_maps(folder, *case, **SETTINGS)
    assert len(calls) == 2
    assert same_bytes(folder, finished[0])


def test_values_that_cannot_be_written_are_reported(case, finished, tmp_path, monkeypatch):
    folder = tmp_path / "full"
    with monkeypatch.context() as patch:
        killed_at(patch, "smoothed_maps", 2)
        with pytest.raises(Killed):
            target_maps(folder, *case, **SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(np.memmap, "flush", no_space)
        with pytest.raises(StorageError, match=r"No space left .* The 6 finished maps are kept"):
            target_maps(folder, *case, **SETTINGS)
    target_maps(folder, *case, **SETTINGS)
    assert same_bytes(folder, finished[0])


def test_the_file_has_its_space_from_the_start(case, tmp_path, monkeypatch):
    killed_at(monkeypatch, "smoothed_maps", 1)
    x = np.tile(case[1], (200, 1, 1, 1))
    with pytest.raises(Killed):
        target_maps(tmp_path, case[0], x, np.zeros(len(x)), **SETTINGS)
    status = (tmp_path / "maps.npy").stat()
    assert status.st_blocks * 512 >= x.nbytes
    assert status.st_size > x.nbytes


def test_maps_that_are_not_finite_are_refused(tmp_path):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(2)(keras.ops.sqrt(inputs)))
    x, labels = np.abs(images(9, (3,))), np.zeros(9, int)
    x[5, 1] = 0  # where the derivative of the root is infinite
    settings = {"method": "gradient", "batch_size": 2, "chunk": 2}
    with pytest.raises(ValueError, match="NaN or infinite values, first in example 5"):
        target_maps(tmp_path, model, x, labels, **settings)
    assert json.loads((tmp_path / "maps.json").read_text())["finished_rows"] == 4


def test_maps_that_are_zero_are_stored(tmp_path):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, kernel_initializer="zeros")])
    x, labels = images(4, (3,)), np.array([0, 1, 1, 0])
    maps = target_maps(tmp_path, model, x, labels, samples=2)
    assert not maps.checked(x, labels).any()


def test_the_seed_belongs_to_smoothgrad_only(case, tmp_path):
    first = target_maps(tmp_path, *case, method="gradient", seed=1)
    assert first.provenance["seed"] is None
    target_maps(tmp_path, *case, method="gradient", seed=2)


def test_bad_input_is_refused_before_anything_is_written(case, tmp_path):
    model, x, labels = case
    folder = tmp_path / "new"
    broken = x.copy()
    broken[3, 0, 0, 0] = np.nan
    wrong = [
        ("NaN or infinite values in 1 of 22", (broken, labels), {}),
        ("the model takes", (x[..., :1], labels), {}),
        ("Give class indices, not one-hot rows", (x, np.eye(CLASSES)[labels]), {}),
        (r"labels must lie in 0\.\.3", (x, labels + 1), {}),
        (r"labels must have shape \(22,\)", (x, labels[1:]), {}),
        (r"labels must have shape \(22,\)", (x, None), {}),
        ('method must be "smoothgrad" or "gradient"', (x, labels), {"method": "vargrad"}),
        ("smoothgrad has no option 'sigmas'; its options", (x, labels), {"sigmas": 1}),
        ("gradient has no option 'sigma'", (x, labels), {"method": "gradient", "sigma": 1}),
        ("sigma must be at least 0", (x, labels), {"sigma": -1}),
        ("samples must be a whole number", (x, labels), {"samples": 0}),
        ("seed must be a whole number", (x, labels), {"seed": -1}),
        ("batch_size must be a whole number", (x, labels), {"batch_size": 0}),
        ("chunk must be a whole number", (x, labels), {"chunk": 0}),
        ('of must be "logit"', (x, labels), {"of": "margin"}),
    ]
    for message, data, settings in wrong:
        with pytest.raises(ValueError, match=message):
            target_maps(folder, model, *data, **settings)
    assert not folder.exists()


def test_a_second_call_is_refused_while_the_first_fills_the_folder(case, tmp_path, monkeypatch):
    calls = []

    def smoothed(*arguments, **options):
        if not calls:
            calls.append(1)
            with pytest.raises(FolderInUseError, match="another call in this process"):
                target_maps(tmp_path, *case, **SETTINGS)
        return original(*arguments, **options)

    original = stored.smoothed_maps
    monkeypatch.setattr(stored, "smoothed_maps", smoothed)
    target_maps(tmp_path, *case, **SETTINGS)
    assert calls
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maps.json", "maps.npy"]


def test_a_folder_deleted_while_it_is_filled_is_not_made_again(case, tmp_path, monkeypatch):
    original = stored.smoothed_maps

    def smoothed(*arguments, first_row, **options):
        if first_row:
            shutil.rmtree(tmp_path / "maps")
        return original(*arguments, first_row=first_row, **options)

    monkeypatch.setattr(stored, "smoothed_maps", smoothed)
    with pytest.raises(FolderLostError):
        target_maps(tmp_path / "maps", *case, **SETTINGS)
    assert not (tmp_path / "maps").exists()
