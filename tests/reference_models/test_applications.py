"""Keras Applications: names, logits, shapes, ImageNet weights, statistics, preprocessing."""

import inspect
import urllib.error
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.nets import shaken
from keras.src.backend import config
from keras.src.legacy.saving import legacy_h5_format
from keras.src.utils import file_utils

import reference_models
from reference_models import ModelFileError
from reference_models.applications import constructors, find
from tfrobust.alignment import measure
from tfrobust.classifier import logits_model
from tfrobust.layers import FrozenBatchNormalization

BatchNormalization = keras.layers.BatchNormalization
SMALL = [
    ("MobileNet", 32),
    ("MobileNetV2", 33),
]
LARGE = [
    ("MobileNetV3Small", 32),
    ("EfficientNetB0", 32),
    ("DenseNet121", 32),
    ("NASNetMobile", 32),
    ("ConvNeXtTiny", 32),
    ("EfficientNetV2B0", 48),
    ("InceptionV3", 75),
    ("InceptionResNetV2", 75),
    ("ResNet50V2", 32),
    ("VGG16", 32),
    ("Xception", 71),
]


def legacy_file(model, path):
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    return path


def normalisations(model):
    return [layer for layer in model.layers if isinstance(layer, BatchNormalization)]


@pytest.fixture(scope="module")
def frozen():
    model = reference_models.build(
        "mobilenet", input_shape=(32, 32, 3), classes=5, statistics="frozen", bn_momentum=0.999
    )
    return shaken(model)


def test_every_constructor_has_its_names():
    listed = [name for name in dir(keras.applications) if name[0].isupper()]
    assert len(listed) > 35
    assert [name.lower() for name in listed] == list(constructors())
    own = {"mnist_cnn", "lenet5", "cifar_nin", "mlp", "linear", "wide_resnet_28_10"}
    assert set(reference_models.names()) > {*own, *constructors()}
    for name in listed:
        own = getattr(keras.applications, name)
        for spelling in (name, name.lower(), name.upper(), f"keras_applications:{name}"):
            assert find(spelling) is own


def test_every_constructor_takes_what_it_is_given():
    wanted = {"weights", "input_shape", "input_tensor", "classes", "classifier_activation"}
    for constructor in constructors().values():
        parameters = inspect.signature(constructor).parameters
        assert wanted <= set(parameters)
        assert parameters["include_top"].default is True


@pytest.mark.parametrize("name", ["resnet5", "ResNet5", "keras_applications:ResNet5"])
def test_unknown_names_have_a_hint(name):
    with pytest.raises(ValueError, match=rf"unknown model '{name}'.*Did you mean 'resnet50'"):
        reference_models.build(name)


@pytest.mark.parametrize(
    ("name", "size"), [*SMALL, *(pytest.param(*row, marks=pytest.mark.slow) for row in LARGE)]
)
def test_the_output_is_the_logits_of_keras_own_model(name, size):
    shape = (size, size, 3)
    original = shaken(getattr(keras.applications, name)(weights=None, input_shape=shape, classes=7))
    model = reference_models.build(name, input_shape=shape, classes=7)
    model.set_weights(original.get_weights())
    assert type(model).__name__ == "Functional"
    assert model.output_shape == (None, 7)
    x = np.random.default_rng(0).uniform(0, 255, (2, *shape)).astype("float32")
    x = reference_models.preprocessing(name)(x)
    logits = model(x, training=False)
    np.testing.assert_array_equal(logits, logits_model(original, x)(x, training=False))
    np.testing.assert_allclose(tf.nn.softmax(logits), original(x, training=False), atol=1e-5)
    assert np.ptp(logits) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("error:the homogeneous decomposition")
def test_a_checkpoint_is_measured(tmp_path, rng):
    """ResNet50 is in Theorem 1's class, so that nothing warns."""
    shape = (48, 48, 3)
    original = keras.applications.ResNet50(weights=None, input_shape=shape, classes=5)
    path = legacy_file(shaken(original), tmp_path / "m.h5")
    images = rng.uniform(0, 255, (3, *shape))

    model = reference_models.build("resnet50", weights=path, input_shape=shape, classes=5)
    x = reference_models.preprocessing("resnet50")(images)
    result = measure(model, x)

    np.testing.assert_array_equal(result.predicted, original(x, training=False).numpy().argmax(1))
    assert result.undefined == 0
    bound = result.theorem2_binarized
    assert (result.linearized_robustness <= bound * (1 + 1e-4)).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), LARGE)
def test_weights_of_every_kind_in_a_frozen_model(imagenet, tmp_path, name, size):
    shape = (size, size, 3)
    original = shaken(getattr(keras.applications, name)(weights=None, input_shape=shape))
    path = imagenet(legacy_file(original, tmp_path / "m.h5"))
    original.save(tmp_path / "m.keras")
    x = np.random.default_rng(0).uniform(0, 255, (1, *shape)).astype("float32")
    x = reference_models.preprocessing(name)(x)
    expected = original(x, training=False)
    for weights in (path, tmp_path / "m.keras", "imagenet"):
        model = reference_models.build(
            name, weights=weights, input_shape=shape, statistics="frozen"
        )
        kinds = {type(layer) for layer in normalisations(model)}
        assert kinds <= {FrozenBatchNormalization}
        np.testing.assert_allclose(tf.nn.softmax(model(x, training=False)), expected, atol=1e-6)


def test_bad_settings():
    for settings, message in [
        ({"statistics": "fixed"}, "statistics is one of .*'frozen'.*got 'fixed'"),
        ({"bn_momentum": 1.5}, "bn_momentum lies in 0..1, got 1.5"),
        ({"classes": 1}, "classes must be at least 2"),
        ({"input_shape": (32, 32)}, "input_shape is .height, width, channels."),
        ({"weights": "imagenet", "classes": 10}, "1000 classes, got classes=10"),
        ({"input_shape": (16, 16, 3)}, "at least 32x32"),
    ]:
        with pytest.raises(ValueError, match=message):
            reference_models.build("mobilenet", **settings)
    with pytest.raises(TypeError):
        reference_models.build("mobilenet", depth=3)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    def fail(*arguments, **keywords):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(file_utils, "urlretrieve", fail)
    monkeypatch.setattr(config, "_KERAS_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("shape", [None, (64, 64, 3)])
def test_imagenet_weights_without_a_network(no_network, shape):
    with pytest.raises(ModelFileError) as caught:
        reference_models.build("mobilenet", weights="imagenet", input_shape=shape)
    text = str(caught.value)
    assert "Name or service not known" in text
    assert "Put the file mobilenet_1_0_224_tf.h5 from https://storage.googleapis.com/" in text
    assert f"into {no_network}/models (Keras's cache, ~/.keras/models unless moved)" in text
    assert "or give it as weights=path" in text


def test_a_connection_that_breaks(no_network, monkeypatch):
    def fail(*arguments, **keywords):
        raise TimeoutError("timed out")

    monkeypatch.setattr(file_utils, "urlretrieve", fail)
    with pytest.raises(ModelFileError, match=r"timed out.*mobilenet_1_0_224_tf\.h5"):
        reference_models.build("mobilenet", weights="imagenet")


def test_a_damaged_file_in_the_cache(no_network):
    (no_network / "models").mkdir()
    (no_network / "models" / "mobilenet_1_0_224_tf.h5").write_bytes(b"\x89HDF\r\n")
    with pytest.raises(ModelFileError, match=r"mobilenet_1_0_224_tf\.h5.*cannot be read.*Delete"):
        reference_models.build("mobilenet", weights="imagenet")


@pytest.fixture
def imagenet(monkeypatch, tmp_path):
    """Stands for the download: the given file is "the ImageNet weights"."""

    def give(path):
        monkeypatch.setattr(file_utils, "get_file", lambda *arguments, **keywords: str(path))
        return path

    return give


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    model = shaken(keras.applications.MobileNetV2(weights=None))
    return model, legacy_file(model, tmp_path_factory.mktemp("pretrained") / "m.h5")


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(None, marks=pytest.mark.slow),
        pytest.param((64, 64, 3), marks=pytest.mark.slow),
        (33, 47, 3),
    ],
)
def test_imagenet_weights_at_any_shape(imagenet, pretrained, shape):
    original, path = pretrained
    imagenet(path)
    model = reference_models.build("mobilenetv2", weights="imagenet", input_shape=shape)
    there = original
    if shape is not None:
        there = keras.applications.MobileNetV2(weights=None, input_shape=shape)
        there.set_weights(original.get_weights())
    assert model.input_shape == there.input_shape
    x = np.random.default_rng(0).uniform(-1, 1, (1, *there.input_shape[1:])).astype("float32")
    np.testing.assert_allclose(
        tf.nn.softmax(model(x, training=False)), there(x, training=False), rtol=1e-4
    )


def test_imagenet_weights_that_do_not_fit_the_shape(imagenet, tmp_path):
    """A dense layer on the flattened map, as in VGG; its data take no room until read."""
    original = keras.applications.VGG16(weights=None, input_shape=(32, 32, 3))
    path = legacy_file(original, tmp_path / "m.h5")
    with h5py.File(path, "r+") as file:
        del file["fc1/fc1/kernel"]
        file["fc1"].create_dataset("fc1/kernel", (2048, 4096), "f4")
    imagenet(path)
    message = r"VGG16 do not fit input_shape=\(32, 32, 3\).*fc1.*\(512, 4096\).*\(2048, 4096\)"
    with pytest.raises(ValueError, match=message):
        reference_models.build("vgg16", weights="imagenet", input_shape=(32, 32, 3))


@pytest.mark.slow
def test_efficientnet_from_a_file_is_the_pretrained_one(imagenet, tmp_path):
    """Keras rescales a second time for weights="imagenet", and for no other file."""
    shape, mean, deviations = (32, 32, 3), np.array([0.485, 0.456, 0.406]), [0.229, 0.224, 0.225]
    original = shaken(keras.applications.EfficientNetB0(weights=None, input_shape=shape))
    normalisation = next(x for x in original.layers if isinstance(x, keras.layers.Normalization))
    normalisation.set_weights([mean, np.array(deviations), np.array(0)])
    path = imagenet(legacy_file(original, tmp_path / "m.h5"))
    # what Keras means by it: divided by the deviations
    normalisation.set_weights([mean, np.square(deviations), np.array(0)])
    normalisation.finalize_state()
    x = np.random.default_rng(0).uniform(0, 255, (2, *shape)).astype("float32")
    expected = original(x, training=False)
    pretrained = reference_models.build("efficientnetb0", weights="imagenet", input_shape=shape)
    saved = reference_models.save(pretrained, tmp_path / "m.keras")
    by_file = [
        reference_models.build("efficientnetb0", weights=file, input_shape=shape)
        for file in (path, saved)
    ]
    for model in (pretrained, *by_file):
        np.testing.assert_allclose(tf.nn.softmax(model(x, training=False)), expected, rtol=1e-4)


def test_efficientnet_trained_from_random_weights_is_rescaled_once(tmp_path):
    original = keras.applications.EfficientNetB0(weights=None, input_shape=(32, 32, 3), classes=3)
    path = legacy_file(original, tmp_path / "m.h5")
    model = reference_models.build(
        "efficientnetb0", weights=path, input_shape=(32, 32, 3), classes=3
    )
    kinds = [type(layer) for layer in model.layers]
    assert kinds.count(keras.layers.Rescaling) == 1


def test_frozen_statistics_keep_the_architecture(frozen):
    plain = reference_models.build("mobilenet", input_shape=(32, 32, 3), classes=5)
    assert plain.name == frozen.name
    # names that Keras numbers depend on what was built before
    assert [x.name for x in plain.layers if x.weights] == [
        x.name for x in frozen.layers if x.weights
    ]
    assert [w.path for w in plain.weights] == [w.path for w in frozen.weights]
    assert {type(layer) for layer in normalisations(plain)} == {BatchNormalization}
    assert {type(layer) for layer in normalisations(frozen)} == {FrozenBatchNormalization}
    plain.set_weights(frozen.get_weights())
    x = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype("float32")
    np.testing.assert_array_equal(frozen(x, training=False), plain(x, training=False))


def test_frozen_statistics_are_not_trained_but_gamma_and_beta_are(frozen):
    x = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("float32")
    before = {w.path: w.numpy() for w in frozen.weights}
    optimizer = keras.optimizers.SGD(0.1)
    dropout = frozen.get_layer("dropout")
    rate, dropout.rate = dropout.rate, 0
    np.testing.assert_array_equal(frozen(x, training=True), frozen(x, training=False))
    dropout.rate = rate
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(frozen(x, training=True)[:, 0] ** 2)
    gradients = tape.gradient(loss, [w.value for w in frozen.trainable_weights])
    # of one size, so that each shows in float32
    gradients = [g / tf.reduce_max(tf.abs(g)) for g in gradients]
    optimizer.apply_gradients(zip(gradients, frozen.trainable_weights, strict=True))
    moving = [w for w in frozen.weights if "moving" in w.name]
    affine = [w for w in frozen.weights if w.name in ("gamma", "beta")]
    assert len(moving) == len(affine) == 2 * 27
    for w in moving:
        np.testing.assert_array_equal(w.numpy(), before[w.path])
    for w in affine:
        assert np.abs(w.numpy() - before[w.path]).max() == pytest.approx(0.1, rel=1e-3)


def test_momentum_and_frozen_statistics_survive_saving(frozen, tmp_path):
    path = reference_models.save(frozen, tmp_path / "m.keras")
    again = reference_models.load(path)
    assert {layer.momentum for layer in normalisations(again)} == {0.999}
    assert {type(layer) for layer in normalisations(again)} == {FrozenBatchNormalization}
    x = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype("float32")
    np.testing.assert_array_equal(again(x), frozen(x))


def test_frozen_models_take_files_of_plain_ones(tmp_path):
    original = shaken(
        keras.applications.MobileNet(weights=None, input_shape=(32, 32, 3), classes=5)
    )
    path = legacy_file(original, tmp_path / "m.h5")
    model = reference_models.build(
        "mobilenet", weights=path, input_shape=(32, 32, 3), classes=5, statistics="frozen"
    )
    for loaded, expected in zip(model.get_weights(), original.get_weights(), strict=True):
        np.testing.assert_array_equal(loaded, expected)


def test_synchronized_statistics_and_momentum(tmp_path):
    settings = {"input_shape": (32, 32, 3), "classes": 5}
    usual = reference_models.build("mobilenet", **settings)
    assert {layer.momentum for layer in normalisations(usual)} == {0.99}
    assert not any(layer.synchronized for layer in normalisations(usual))
    model = reference_models.build(
        "mobilenet", statistics="synchronized", bn_momentum=0.9, **settings
    )
    for net in (model, reference_models.load(reference_models.save(model, tmp_path / "m.keras"))):
        assert len(normalisations(net)) == 27
        assert all(layer.synchronized for layer in normalisations(net))
        assert {layer.momentum for layer in normalisations(net)} == {0.9}
    layer = normalisations(model)[0]
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    model(x, training=True)
    batch_mean = np.asarray(model.layers[1](x)).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(layer.moving_mean, 0.1 * batch_mean, rtol=1e-3, atol=1e-6)


def test_models_without_batch_normalisation():
    settings = {"input_shape": (32, 32, 3), "classes": 3}
    with pytest.raises(ValueError, match="vgg16 has no batch normalisation"):
        reference_models.build("vgg16", bn_momentum=0.9, **settings)


@pytest.mark.slow
def test_default_sizes():
    sizes = {"mobilenet": 224, "inceptionv3": 299, "mobilenetv3small": 224}
    for name, size in sizes.items():
        assert reference_models.preprocessing(name).size == (size, size)
    assert reference_models.preprocessing("caffe").size is None


def modules():
    """One constructor of each module with a preprocessing of its own."""
    return {inspect.getmodule(value): name for name, value in constructors().items()}.items()


@pytest.mark.parametrize(("module", "name"), modules())
def test_preprocessing_is_the_applications_own(module, name, rng):
    preprocessing = reference_models.preprocessing(name)
    images = rng.uniform(0, 255, (2, 6, 5, 3)).astype("float32")
    kept = images.copy()
    x = preprocessing(images)
    np.testing.assert_array_equal(images, kept)
    assert not np.shares_memory(x, images)
    assert x.dtype == np.float32
    expected = module.preprocess_input(images.copy())
    np.testing.assert_array_equal(x, expected)
    np.testing.assert_array_equal(preprocessing(images[0]), expected[0])
    np.testing.assert_array_equal(preprocessing(tf.constant(images)), expected)
    np.testing.assert_allclose(preprocessing.inverse(x), images, atol=1e-3)
    np.testing.assert_allclose(preprocessing.inverse(tf.constant(x)), images, atol=1e-3)
    corners = np.stack(np.meshgrid([0, 255], [0, 255], [0, 255]), -1).reshape(1, 1, 8, 3)
    reached = preprocessing(corners.astype("uint8"))
    np.testing.assert_allclose(reached.min(axis=(0, 1, 2)), preprocessing.low, rtol=1e-6)
    np.testing.assert_allclose(reached.max(axis=(0, 1, 2)), preprocessing.high, rtol=1e-6)
    assert preprocessing.value_range == (min(preprocessing.low), max(preprocessing.high))


@pytest.mark.parametrize(
    ("name", "channels", "value_range"),
    [
        ("resnet50", (2, 1, 0), (-123.68, 151.061)),
        ("keras_applications:VGG16", (2, 1, 0), (-123.68, 151.061)),
        ("caffe", (2, 1, 0), (-123.68, 151.061)),
        ("ResNet50V2", (0, 1, 2), (-1, 1)),
        ("mobilenetv2", (0, 1, 2), (-1, 1)),
        ("tf", (0, 1, 2), (-1, 1)),
        ("densenet121", (0, 1, 2), (-0.485 / 0.229, (1 - 0.406) / 0.225)),
        ("torch", (0, 1, 2), (-0.485 / 0.229, (1 - 0.406) / 0.225)),
        ("efficientnetb0", (0, 1, 2), (0, 255)),
        ("none", (0, 1, 2), (0, 255)),
        ("unit", (0, 1, 2), (0, 1)),
    ],
)
def test_known_ranges_and_orders(name, channels, value_range):
    preprocessing = reference_models.preprocessing(name)
    assert preprocessing.channels == channels
    assert preprocessing.value_range == pytest.approx(value_range, abs=1e-9)


def test_caffe_style_in_numbers():
    preprocessing = reference_models.preprocessing("resnet50")
    assert preprocessing.low == pytest.approx((-103.939, -116.779, -123.68))
    assert preprocessing.high == pytest.approx((151.061, 138.221, 131.32))
    red = preprocessing(np.array([[[200, 0, 0]]]))
    np.testing.assert_allclose(red, [[[-103.939, -116.779, 76.32]]], rtol=1e-6)


def test_bit_equal_on_a_real_image(data_dir):
    path = sorted(Path(data_dir, "imagenet_sample", "val").glob("*/*.JPEG"))[0]
    image = tf.io.decode_jpeg(path.read_bytes(), channels=3)
    expected = keras.applications.resnet50.preprocess_input(image.numpy().astype("float32"))
    preprocessing = reference_models.preprocessing("resnet50")
    assert preprocessing(image.numpy()).tobytes() == expected.tobytes()
    symbolic = tf.data.Dataset.from_tensors(image).map(preprocessing)
    assert next(iter(symbolic)).numpy().tobytes() == expected.tobytes()
    tensor = tf.cast(image, tf.float32)
    direct = keras.applications.resnet50.preprocess_input(tensor).numpy()
    assert direct.tobytes() == expected.tobytes()


def test_preprocessing_inside_a_model():
    inputs = keras.Input((4, 5, 3), dtype="uint8")
    preprocessing = reference_models.preprocessing("caffe")
    x = preprocessing(inputs)
    model = keras.Model(inputs, [x, preprocessing.inverse(x)])
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype="uint8")
    forward, back = model(images)
    np.testing.assert_array_equal(forward, preprocessing(images))
    np.testing.assert_allclose(back, images, atol=1e-4)


def test_bad_preprocessing(monkeypatch):
    with pytest.raises(ValueError, match=r"unknown preprocessing 'caffee'.*Did you mean 'caffe'"):
        reference_models.preprocessing("caffee")
    preprocessing = reference_models.preprocessing("tf")
    for shape in [(5,), (4, 5), (4, 5, 1), (1, 2, 4, 5, 3)]:
        for images in (np.zeros(shape), tf.zeros(shape)):
            with pytest.raises(ValueError, match=r"images have shape \(height, width, 3\)"):
                preprocessing(images)
            with pytest.raises(ValueError, match=r"images have shape"):
                preprocessing.inverse(images)
    module = inspect.getmodule(find("resnet50"))
    for function in (np.sqrt, lambda x: x.mean(axis=-1, keepdims=True) + 0 * x, np.zeros_like):
        monkeypatch.setattr(module, "preprocess_input", function)
        with pytest.raises(ValueError, match="ResNet50 is not affine in each channel"):
            reference_models.preprocessing("resnet50")
