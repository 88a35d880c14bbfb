"""Weight files: what Keras Applications itself writes, in every format, and what does not fit."""

import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.nets import randomise, shaken
from keras.src.legacy.saving import legacy_h5_format

import reference_models
from reference_models import ModelFileError
from reference_models.weights import load_weights
from tfrobust.layers import FrozenBatchNormalization

layers = keras.layers
SHAPE, CLASSES = (32, 32, 3), 12
FORMATS = ["m.weights.h5", "m.keras", "m.h5", "whole.h5"]


def write(model, folder):
    """`model` in every format, as Keras writes it."""
    model.save_weights(folder / "m.weights.h5")
    model.save(folder / "m.keras")
    with h5py.File(folder / "m.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    legacy_h5_format.save_model_to_hdf5(model, folder / "whole.h5", include_optimizer=False)
    return folder


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory):
    """Keras's own ResNet50 with its softmax and without, and the folder of the former's files."""
    settings = {"weights": None, "input_shape": SHAPE, "classes": CLASSES}
    model = shaken(keras.applications.ResNet50(**settings))
    bare = keras.applications.ResNet50(**settings, classifier_activation=None)
    bare.set_weights(model.get_weights())
    x = np.random.default_rng(0).normal(0, 50, (2, *SHAPE)).astype("float32")
    outputs = [np.asarray(net(x, training=False)) for net in (bare, model)]
    return write(model, tmp_path_factory.mktemp("resnet50")), x, *outputs


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory):
    model = keras.applications.MobileNet(weights=None, input_shape=SHAPE, classes=CLASSES)
    return shaken(model), write(model, tmp_path_factory.mktemp("mobilenet"))


def small(kind=layers.Dense, units=4, name="head", extra=False):
    inputs = keras.Input((3,))
    x = layers.BatchNormalization(name="norm")(layers.Dense(3, name="first")(inputs))
    x = layers.Dense(3, name="second")(x)
    x = layers.Dense(3, name="third")(x) if extra else x
    if kind is layers.Embedding:
        x = layers.Embedding(3, units, name=name)(x)
    else:
        x = kind(units, use_bias=False, name=name)(x)
    return randomise(keras.Model(inputs, x, name="small"), 0)


@pytest.mark.parametrize(
    "name", [*FORMATS[:2], *(pytest.param(name, marks=pytest.mark.slow) for name in FORMATS[2:])]
)
def test_resnet50_files_of_keras_itself(resnet50, name):
    folder, x, expected, probabilities = resnet50
    model = reference_models.build(
        "resnet50", weights=folder / name, input_shape=SHAPE, classes=CLASSES
    )
    logits = np.asarray(model(x, training=False))
    assert logits.std() > 0.1
    np.testing.assert_array_equal(logits, expected)
    np.testing.assert_allclose(tf.nn.softmax(logits), probabilities, atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_every_weight_lands_in_its_place(mobilenet, name):
    original, folder = mobilenet
    model = keras.applications.MobileNet(weights=None, input_shape=SHAPE, classes=CLASSES)
    load_weights(model, str(folder / name))
    for loaded, expected in zip(model.get_weights(), original.get_weights(), strict=True):
        np.testing.assert_array_equal(loaded, expected)


@pytest.mark.parametrize("name", FORMATS)
def test_nested_models(tmp_path, name):
    """ConvNeXt's downsampling blocks are models inside the model."""

    def nested():
        inner = keras.Sequential([layers.LayerNormalization(), layers.Dense(3)], name="block")
        inputs = keras.Input((3,))
        return keras.Model(inputs, layers.Dense(2)(inner(layers.Dense(3)(inputs))))

    original, model = randomise(nested(), 1), randomise(nested(), 2)
    load_weights(model, write(original, tmp_path) / name)
    for loaded, expected in zip(model.get_weights(), original.get_weights(), strict=True):
        np.testing.assert_array_equal(loaded, expected)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("frozen_file", [True, False])
def test_frozen_and_plain_models_share_files(tmp_path, frozen_file, name):
    def net(kind):
        inputs = keras.Input((3,))
        return keras.Model(inputs, layers.Dense(2)(kind()(kind()(inputs))))

    kinds = [FrozenBatchNormalization, layers.BatchNormalization]
    saved, loaded = kinds if frozen_file else kinds[::-1]
    original, model = randomise(net(saved), 1), randomise(net(loaded), 2)
    load_weights(model, write(original, tmp_path) / name)
    for value, expected in zip(model.get_weights(), original.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_more_than_ten_layers_of_a_class(tmp_path):
    """Names in HDF5 sort as text: dense_10 before dense_2."""

    def deep():
        return keras.Sequential([keras.Input((3,)), *(layers.Dense(3) for _ in range(12))])

    original, model = randomise(deep(), 1), randomise(deep(), 2)
    load_weights(model, write(original, tmp_path) / "m.weights.h5")
    np.testing.assert_array_equal(model.layers[2].kernel, original.layers[2].kernel)
    np.testing.assert_array_equal(model.layers[10].kernel, original.layers[10].kernel)


def test_legacy_layers_in_another_order_go_by_name(tmp_path):
    original = small()
    path = write(original, tmp_path) / "m.h5"
    with h5py.File(path, "r+") as file:
        file.attrs["layer_names"] = file.attrs["layer_names"][::-1]
    model = randomise(small(), 5)
    load_weights(model, path)
    np.testing.assert_array_equal(model.get_layer("second").kernel, original.layers[3].kernel)


def test_legacy_layers_of_other_names_go_by_order(tmp_path):
    path = write(small(name="predictions"), tmp_path) / "m.h5"
    model = randomise(small(name="logits"), 5)
    load_weights(model, path)
    np.testing.assert_array_equal(model.get_layer("logits").kernel, small().layers[-1].kernel)


def test_legacy_names_in_pieces(tmp_path, monkeypatch):
    """Keras cuts lists of names that HDF5's headers cannot hold."""
    monkeypatch.setattr(legacy_h5_format, "HDF5_OBJECT_HEADER_LIMIT", 60)
    path = write(small(), tmp_path) / "m.h5"
    with h5py.File(path) as file:
        assert "layer_names1" in file.attrs
    model = randomise(small(), 5)
    load_weights(model, path)
    np.testing.assert_array_equal(model.get_layer("first").kernel, small().layers[1].kernel)


def test_normalisation_takes_over_loaded_statistics(tmp_path):
    def net():
        return keras.Sequential([keras.Input((3,)), layers.Normalization(), layers.Dense(2)])

    original = net()
    original.layers[0].adapt(np.random.default_rng(0).normal(3, 5, (50, 3)))
    model = net()
    load_weights(model, write(original, tmp_path) / "m.weights.h5")
    model.layers[1].set_weights(original.layers[1].get_weights())
    x = np.ones((2, 3), "float32")
    np.testing.assert_array_equal(model(x), original(x))


@pytest.mark.parametrize("name", FORMATS)
def test_another_architecture_names_the_first_mismatch(resnet50, name):
    model = randomise(
        keras.applications.MobileNet(weights=None, input_shape=SHAPE, classes=CLASSES), 0
    )
    before = model.get_weights()
    with pytest.raises(ModelFileError) as caught:
        load_weights(model, resnet50[0] / name)
    text = str(caught.value)
    assert (
        f"{name} does not fit mobilenet_1.00_32: layer 'conv1' ('conv1_conv' in the file)" in text
    )
    assert "weights of shapes [(3, 3, 3, 32)] in the model and [(7, 7, 3, 64), (64,)]" in text
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("name", FORMATS)
def test_a_weight_of_another_shape(tmp_path, name):
    inputs = keras.Input((3,))
    x = layers.Dense(5, name="second")(layers.Dense(3, name="first")(inputs))
    wrong = keras.Model(inputs, layers.Dense(4, name="head")(x))
    right = keras.Sequential([inputs, *(layers.Dense(n, name=f"d{n}") for n in (3, 2, 4))])
    with pytest.raises(ModelFileError) as caught:
        load_weights(right, write(wrong, tmp_path) / name)
    text = str(caught.value)
    assert "weight 'kernel' of layer 'd2' ('second' in the file) has shape (3, 2) in the" in text
    assert "model and (3, 5) in the file. The model is unchanged." in text


@pytest.mark.parametrize("name", FORMATS)
def test_layers_too_many_and_too_few(tmp_path, name):
    short, long = write(small(), tmp_path), tmp_path / "long"
    long.mkdir()
    write(small(extra=True), long)
    model = small()
    with pytest.raises(ModelFileError, match="does not fit small"):
        load_weights(model, long / name)
    with pytest.raises(ModelFileError, match="does not fit small"):
        load_weights(small(extra=True), short / name)
    for now, then in zip(model.get_weights(), small().get_weights(), strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("name", FORMATS)
def test_left_over_layers_are_named(tmp_path, name):
    def chain(count):
        return keras.Sequential([keras.Input((3,)), *(layers.Dense(3) for _ in range(count))])

    short, long = chain(2), chain(3)
    with pytest.raises(ModelFileError) as caught:
        load_weights(short, write(long, tmp_path) / name)
    last = long.layers[-1].name
    assert f"the file's layer {last!r}, of shapes [(3, 3), (3,)], is not in" in str(caught.value)
    (tmp_path / "short").mkdir()
    with pytest.raises(ModelFileError) as caught:
        load_weights(long, write(short, tmp_path / "short") / name)
    assert f"the model's layer {last!r}, of shapes [(3, 3), (3,)], is not" in str(caught.value)


@pytest.mark.parametrize("name", ["m.weights.h5", "m.keras"])
def test_another_kind_of_layer_with_the_same_shapes(tmp_path, name):
    path = write(small(layers.Embedding), tmp_path) / name
    with pytest.raises(ModelFileError, match=r"model's layer 'head', of shapes \[\(3, 4\)\]"):
        load_weights(small(), path)


@pytest.mark.parametrize("name", FORMATS)
def test_another_number_of_classes(mobilenet, name):
    with pytest.raises(ModelFileError, match=r"'conv_preds'.*head has 12 classes: build with") as e:
        reference_models.build("mobilenet", weights=mobilenet[1] / name, input_shape=SHAPE)
    assert str(e.value).endswith("classes=12. The model is unchanged.")


def test_another_number_of_classes_in_a_dense_head(resnet50):
    path = resnet50[0] / "m.h5"
    message = r"'kernel' of layer 'predictions' has shape \(2048, 1000\).*classes=12\."
    with pytest.raises(ModelFileError, match=message):
        reference_models.build("resnet50", weights=path, input_shape=SHAPE)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", FORMATS)
def test_truncated_files(tmp_path, mobilenet, name, part):
    content = (mobilenet[1] / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: int(len(content) * part)])
    model = small()
    with pytest.raises(ModelFileError, match=rf"{name} .*(damaged|truncated)"):
        load_weights(model, path)
    for now, then in zip(model.get_weights(), small().get_weights(), strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_damaged_archive(tmp_path, mobilenet):
    """One wrong bit in the weights; the archive's checksum tells."""
    content = bytearray((mobilenet[1] / "m.keras").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "m.keras").write_bytes(content)
    with pytest.raises(ModelFileError, match="CRC"):
        load_weights(small(), tmp_path / "m.keras")


def test_files_that_hold_something_else(tmp_path):
    with pytest.raises(ModelFileError, match=r"no weight file .*; weights is None, 'imagenet'"):
        reference_models.build("resnet50", weights="ImageNet")
    with pytest.raises(ModelFileError, match="there is no weight file"):
        load_weights(small(), tmp_path)
    (tmp_path / "text.h5").write_text("weights")
    with pytest.raises(ModelFileError, match="neither HDF5 nor a Keras archive"):
        load_weights(small(), tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(ModelFileError, match="no weights in a known layout"):
        load_weights(small(), tmp_path / "other.h5")
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(ModelFileError, match=r"model\.weights\.h5"):
        load_weights(small(), tmp_path / "other.keras")


def test_values_that_are_no_numbers(tmp_path):
    path = write(small(), tmp_path) / "m.h5"
    with h5py.File(path, "r+") as file:
        name = file["head"].attrs["weight_names"][0]
        del file["head"][name]
        file["head"][name] = np.full((3, 4), b"text")
    with pytest.raises(ModelFileError, match=r"'kernel' of layer 'head' is stored as \|S4"):
        load_weights(small(), path)


def test_a_files_configuration_is_not_looked_at(tmp_path):
    """So that no code can come from there."""
    source = write(small(), tmp_path) / "m.keras"
    path = tmp_path / "odd.keras"
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(path, "w") as other:
        other.writestr("model.weights.h5", archive.read("model.weights.h5"))
        other.writestr("config.json", '{"class_name": "Lambda"}')
    model = randomise(small(), 5)
    load_weights(model, path)
    np.testing.assert_array_equal(model.get_layer("head").kernel, small().layers[-1].kernel)
