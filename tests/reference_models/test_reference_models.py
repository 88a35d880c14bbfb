"""Architectures against the paper's description, and models on disk."""

import json
import zipfile

import keras
import numpy as np
import pytest

import reference_models
from reference_models import ModelFileError


def test_mnist_cnn_is_the_papers():
    model = reference_models.build("mnist_cnn")
    kinds = [type(layer).__name__ for layer in model.layers[1:]]
    block = ["Conv2D", "MaxPooling2D"]
    assert kinds == [*block * 3, "Flatten", "Dense", "Dropout", "Dense"]
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.filters for layer in convolutions] == [32, 64, 128]
    for layer in convolutions:
        assert layer.kernel_size == (3, 3)
        assert layer.padding == "same"
        assert layer.activation is keras.activations.relu
    assert model.layers[-2].rate == 0.5
    assert model.layers[-1].activation is keras.activations.linear
    by_hand = 9 * 32 + 32 + 9 * 32 * 64 + 64 + 9 * 64 * 128 + 128 + 3 * 3 * 128 * 128 + 128 + 1290
    assert model.count_params() == by_hand
    assert model(np.zeros((2, 28, 28, 1))).shape == (2, 10)


def test_settings_and_unknown_names():
    assert reference_models.build("mnist_cnn", classes=3).output_shape == (None, 3)
    with pytest.raises(ValueError, match=r"unknown model 'mnist_cn'.*Did you mean 'mnist_cnn'"):
        reference_models.build("mnist_cn")
    with pytest.raises(TypeError):
        reference_models.build("mnist_cnn", depth=3)


def test_saved_and_loaded(tmp_path, rng):
    model = reference_models.build("mnist_cnn")
    path = reference_models.save(model, tmp_path / "deep" / "model.keras", provenance={"seed": 3})
    x = rng.random((3, 28, 28, 1), dtype="float32")
    again = reference_models.load(path)
    np.testing.assert_array_equal(np.asarray(again(x)), np.asarray(model(x)))
    record = reference_models.provenance(path)
    assert record["seed"] == 3
    assert record["keras"] == keras.__version__
    assert record["parameters"] == model.count_params()


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file(tmp_path, part):
    path = reference_models.save(reference_models.build("mnist_cnn"), tmp_path / "m.keras")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ModelFileError, match=r"m\.keras cannot be loaded .* truncated"):
        reference_models.load(path)


def test_missing_file_and_missing_record(tmp_path):
    with pytest.raises(ModelFileError, match="there is no model file"):
        reference_models.load(tmp_path / "none.keras")
    with pytest.raises(ModelFileError, match="no provenance beside"):
        reference_models.provenance(tmp_path / "none.keras")


def test_code_in_a_file_is_not_run(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: 2 * x)])
    path = tmp_path / "lambda.keras"
    model.save(path)
    with pytest.raises(ModelFileError, match="safe mode"):
        reference_models.load(path)


def test_nothing_is_pickled(tmp_path):
    path = reference_models.save(reference_models.build("mnist_cnn"), tmp_path / "m.keras")
    with zipfile.ZipFile(path) as archive:
        assert not [name for name in archive.namelist() if "pkl" in name or "pickle" in name]
    json.loads(path.with_name("m.keras.json").read_text())


def test_bad_targets(tmp_path):
    model = reference_models.build("mnist_cnn")
    with pytest.raises(ValueError, match=r"ends in \.keras"):
        reference_models.save(model, tmp_path / "m.h5")
    with pytest.raises(ValueError, match="plain JSON"):
        reference_models.save(model, tmp_path / "m.keras", provenance={"x": object()})
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write to the folder"):
        reference_models.save(model, tmp_path / "file" / "m.keras")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
