"""Model and weight files from strangers: nothing outside them is read, no memory is filled."""

import io
import json
import zipfile

import h5py
import keras
import numpy as np
import pytest
from helpers.nets import randomise

import reference_models
from reference_models import ModelFileError, load_weights, save_weights

SECRET = np.arange(12, dtype=np.float32).reshape(3, 4)
WAYS = ["external", "virtual", "external link", "soft link", "linked group", "shape bomb", "circle"]


def small():
    inputs = keras.Input((3,))
    return randomise(keras.Model(inputs, keras.layers.Dense(4, name="head")(inputs)), 0)


def weights_of(model):
    return [np.asarray(value) for value in model.get_weights()]


def poison(file, folder, way):
    """Replace the kernel, (3, 4), by something that lies elsewhere."""
    place = file["layers/dense/vars"]
    del place["0"]
    if way == "external":
        SECRET.tofile(folder / "secret")
        external = [(str(folder / "secret"), 0, h5py.h5f.UNLIMITED)]
        place.create_dataset("0", (3, 4), "f4", external=external)
    elif way == "virtual":
        with h5py.File(folder / "secret.h5", "w") as other:
            other["x"] = SECRET
        layout = h5py.VirtualLayout((3, 4), "f4")
        layout[:] = h5py.VirtualSource(folder / "secret.h5", "x", (3, 4))
        place.create_virtual_dataset("0", layout)
    elif way == "external link":
        with h5py.File(folder / "secret.h5", "w") as other:
            other["x"] = SECRET
        place["0"] = h5py.ExternalLink(folder / "secret.h5", "x")
    elif way == "soft link":
        file["elsewhere"] = SECRET
        place["0"] = h5py.SoftLink("/elsewhere")
    elif way == "linked group":
        with h5py.File(folder / "secret.h5", "w") as other:
            other["vars/0"], other["vars/1"] = SECRET, SECRET[0]
        del file["layers/dense/vars"]
        file["layers/dense/vars"] = h5py.ExternalLink(folder / "secret.h5", "vars")
    elif way == "circle":
        place["0"] = SECRET
        file["layers/dense/vars/again"] = file["layers"]
    else:
        place.create_dataset("0", (2**16, 2**14), "f4", chunks=(2**10, 2**10), compression="gzip")


def poisoned(folder, kind, way):
    """A file of the kind with the poison in it."""
    model = small()
    if kind == "weights":
        model.save_weights(folder / "m.weights.h5")
        with h5py.File(folder / "m.weights.h5", "r+") as file:
            poison(file, folder, way)
        return folder / "m.weights.h5"
    model.save(folder / "whole.keras")
    with (
        zipfile.ZipFile(folder / "whole.keras") as whole,
        zipfile.ZipFile(folder / "m.keras", "w") as archive,
    ):
        for name in whole.namelist():
            content = whole.read(name)
            if name.endswith(".h5"):
                stream = io.BytesIO(content)
                with h5py.File(stream, "r+") as file:
                    poison(file, folder, way)
                content = stream.getvalue()
            archive.writestr(name, content)
    return folder / "m.keras"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["weights", "keras"])
def test_what_lies_outside_a_file_is_not_read(tmp_path, kind, way):
    path = poisoned(tmp_path, kind, way)
    model = small()
    before = weights_of(model)
    with pytest.raises(ModelFileError, match=rf"{path.name} cannot be read"):
        load_weights(model, path)
    for one, other in zip(before, weights_of(model), strict=True):
        np.testing.assert_array_equal(one, other)
    if kind == "keras":
        with pytest.raises(ModelFileError, match=r"m\.keras cannot be loaded"):
            reference_models.load(path)


def test_an_archive_that_fills_the_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("config.json", "metadata.json", "model.weights.h5"):
            with archive.open(name, "w") as file:
                for _ in range(100):
                    file.write(bytes(2**20))
    assert path.stat().st_size < 2**19
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("read"))
    for read in (reference_models.load, lambda path: load_weights(small(), path)):
        with pytest.raises(ModelFileError, match="made to fill the memory"):
            read(path)


def test_own_weight_files_are_compared_with_their_digest(tmp_path):
    model = small()
    path = save_weights(model, tmp_path / "m.weights.h5")
    other = small()
    other.set_weights([0 * value for value in other.get_weights()])
    load_weights(other, path)
    for one, two in zip(weights_of(model), weights_of(other), strict=True):
        np.testing.assert_array_equal(one, two)
    kept = weights_of(other)
    with h5py.File(path, "r+") as file:
        file["layers/dense/vars/0"][0, 0] += 1
    with pytest.raises(ModelFileError, match=r"m\.weights\.h5 is damaged"):
        load_weights(other, path)
    for one, two in zip(kept, weights_of(other), strict=True):
        np.testing.assert_array_equal(one, two)
    with pytest.raises(ValueError, match=r"ends in \.weights\.h5"):
        save_weights(model, tmp_path / "m.h5")


def test_no_damaged_byte_of_own_weights_is_taken_silently(tmp_path):
    path = save_weights(small(), tmp_path / "m.weights.h5")
    whole, model = path.read_bytes(), small()
    expected = weights_of(model)
    rng = np.random.default_rng(0)
    for place in rng.choice(len(whole), 60, replace=False):
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            load_weights(model, path)
        except ModelFileError as error:
            assert "m.weights.h5" in str(error)
        for one, other in zip(expected, weights_of(model), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_model_is_compared_with_the_record_beside_it(tmp_path):
    model = small()
    path = reference_models.save(model, tmp_path / "m.keras", provenance={"seed": 1})
    assert reference_models.provenance(path)["seed"] == 1
    reference_models.load(path)
    small().save(path)  # equal weights in another file
    with pytest.raises(ModelFileError, match=r"m\.keras is not the file that its record"):
        reference_models.load(path)
    (tmp_path / "m.keras.json").unlink()
    reference_models.load(path)
    (tmp_path / "m.keras.json").write_text(json.dumps({"seed": 1}))  # of an earlier version
    reference_models.load(path)
    (tmp_path / "m.keras.json").write_text("[]")
    with pytest.raises(ModelFileError, match=r"m\.keras\.json is damaged"):
        reference_models.load(path)


class Killed(BaseException):
    """What a process does not survive."""


def test_a_kill_at_any_moment_leaves_no_model_without_its_record(tmp_path, monkeypatch):
    from pathlib import Path

    replace, moves = Path.replace, []

    def killed_at(number):
        def move(path, target):
            if len(moves) == number:
                raise Killed
            moves.append(Path(target).name)
            return replace(path, target)

        return move

    for number in range(2):
        moves.clear()
        monkeypatch.setattr(Path, "replace", killed_at(number))
        with pytest.raises(Killed):
            reference_models.save(small(), tmp_path / "m.keras")
        monkeypatch.undo()
        assert not (tmp_path / "m.keras").exists()
    reference_models.save(small(), tmp_path / "m.keras")
    assert reference_models.provenance(tmp_path / "m.keras")["parameters"] == 16
