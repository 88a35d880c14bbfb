"""Kim 2019's VAE-GANs against the paper's tables and the released code; the spectral norm."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.nets import double_precision, randomise

import reference_models
from reference_models.vae_gan import SpectralConv2D
from tfrobust.errors import InputError
from tfrobust.manifold import VaeGan

NAMES = ("vae_gan_28", "vae_gan_32")
VARIANTS = ("text", "released")


@functools.cache
def built(name, variant):
    return reference_models.build(name, variant=variant)


def described(network):
    """Kind, kernel size, strides and filters, or units, of every layer with a kernel."""
    rows = []
    for layer in network.layers:
        inner = getattr(layer, "layer", layer)  # of a wrapper
        if isinstance(inner, keras.layers.Dense):
            rows.append(("dense", inner.units))
        elif isinstance(inner, keras.layers.Conv2DTranspose):
            rows.append(("deconv", inner.kernel_size[0], inner.strides[0], inner.filters))
        elif isinstance(inner, keras.layers.Conv2D):
            rows.append(("conv", inner.kernel_size[0], inner.strides[0], inner.filters))
    return rows


def is_convolution(layer):
    inner = getattr(layer, "layer", layer)
    return isinstance(inner, (keras.layers.Conv2D, keras.layers.Conv2DTranspose))


def sizes(network):
    """Height of the images after every convolution."""
    return [layer.output.shape[1] for layer in network.layers if is_convolution(layer)]


def kinds(network):
    return [type(layer).__name__ for layer in network.layers[1:]]


def counts(network):
    trained = sum(int(np.prod(w.shape)) for w in network.trainable_weights)
    return trained, network.count_params() - trained


@pytest.mark.parametrize("variant", VARIANTS)
def test_28_is_the_tabled_one(variant):
    vae = built("vae_gan_28", variant)
    assert isinstance(vae, VaeGan)
    assert (vae.latent_size, vae.image_shape, vae.value_range) == (10, (28, 28, 1), (-1.0, 1.0))
    assert described(vae.encoder) == [
        ("conv", 4, 2, 64),
        ("conv", 4, 2, 128),
        ("conv", 4, 2, 256),
        ("dense", 20),
    ]
    assert sizes(vae.encoder) == [14, 7, 4]
    assert described(vae.decoder) == [
        ("dense", 1024),
        ("deconv", 4, 2, 256),
        ("deconv", 4, 1, 128),
        ("deconv", 4, 2, 32),
        ("deconv", 4, 2, 1),
    ]
    assert sizes(vae.decoder) == [4, 7, 14, 28]
    assert described(vae.discriminator) == [
        ("conv", 4, 2, 32),
        ("conv", 4, 2, 128),
        ("conv", 4, 2, 256),
        ("conv", 4, 2, 256),
        ("dense", 512),
        ("dense", 1),
    ]
    assert sizes(vae.discriminator) == [14, 7, 4, 2]
    # kernels and biases; two trained numbers per normalised channel, two moving statistics
    channels = 64 + 128 + 256 + 20
    weights = 1088 + 131_200 + 524_544 + 81_940
    assert counts(vae.encoder) == (weights + 2 * channels, 2 * channels)
    channels = 1024 + 256 + 128 + 32
    weights = 11_264 + 1_048_832 + 524_416 + 65_568 + 513
    assert counts(vae.decoder) == (weights + 2 * channels, 2 * channels)
    channels = 128 + 256 + 256 + 512
    weights = 544 + 65_664 + 524_544 + 1_048_832 + 524_800 + 513
    assert counts(vae.discriminator) == (weights + 2 * channels, 2 * channels)


@pytest.mark.parametrize("variant", VARIANTS)
def test_32_is_the_tabled_one(variant):
    vae = built("vae_gan_32", variant)
    assert (vae.latent_size, vae.image_shape, vae.value_range) == (128, (32, 32, 3), (-1.0, 1.0))
    size = {"text": 4, "released": 5}[variant]
    assert described(vae.encoder) == [
        ("conv", size, 2, 64),
        ("conv", size, 2, 128),
        ("conv", size, 2, 256),
        ("dense", 256),
    ]
    assert sizes(vae.encoder) == [16, 8, 4]
    assert described(vae.decoder) == [
        ("dense", 8192),
        ("deconv", 4, 2, 256),
        ("deconv", 4, 2, 128),
        ("deconv", 4, 2, 64),
        ("conv", 3, 1, 3),
    ]
    assert sizes(vae.decoder) == [8, 16, 32, 32]
    assert described(vae.discriminator) == [
        ("conv", 3, 1, 64),
        ("conv", 4, 2, 64),
        ("conv", 3, 1, 128),
        ("conv", 4, 2, 128),
        ("conv", 3, 1, 256),
        ("conv", 4, 2, 256),
        ("conv", 3, 1, 512),
        ("dense", 1),
    ]
    assert sizes(vae.discriminator) == [32, 16, 16, 8, 8, 4, 4]
    channels = 64 + 128 + 256 + 256
    weights = {
        "text": 3136 + 131_200 + 524_544 + 1_048_832,
        "released": 4864 + 204_928 + 819_456 + 1_048_832,
    }[variant]
    assert counts(vae.encoder) == (weights + 2 * channels, 2 * channels)
    channels = 256 + 128 + 64
    weights = 1_056_768 + 2_097_408 + 524_416 + 131_136 + 1731
    assert counts(vae.decoder) == (weights + 2 * channels, 2 * channels)
    weights = 1792 + 65_600 + 73_856 + 262_272 + 295_168 + 1_048_832 + 1_180_160 + 8193
    # power iteration starts from a vector of filters, or from an image of the input's size
    vectors = {
        "text": 64 + 64 + 128 + 128 + 256 + 256 + 512,
        "released": 3072 + 65_536 + 16_384 + 32_768 + 8192 + 16_384 + 4096,
    }[variant]
    assert counts(vae.discriminator) == (weights, vectors)


def test_batch_normalisation_before_or_after_relu():
    order = {
        "text": ["BatchNormalization", "ReLU"],
        "released": ["ReLU", "BatchNormalization"],
    }
    for variant, block in order.items():
        for name in NAMES:
            vae = built(name, variant)
            encoder = [*["Conv2D", *block] * 3, "Flatten", "Dense", "BatchNormalization"]
            assert kinds(vae.encoder) == encoder
            first = block if name == "vae_gan_28" else []
            deconvolutions = ["Conv2DTranspose", *block] * 3
            last = "Conv2DTranspose" if name == "vae_gan_28" else "Conv2D"
            assert kinds(vae.decoder) == ["Dense", *first, "Reshape", *deconvolutions, last]
        blocks = ["Conv2D", *block] * 3
        tail = ["Flatten", "Dense", *block, "Dense"]
        found = kinds(built("vae_gan_28", variant).discriminator)
        assert found == ["Conv2D", "ReLU", *blocks, *tail]
    for variant, kind in {"text": "SpectralNormalization", "released": "SpectralConv2D"}.items():
        found = kinds(built("vae_gan_32", variant).discriminator)
        assert found == [*[kind, "LeakyReLU"] * 7, "Flatten", "Dense"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NAMES)
def test_layers_are_tf1s(name, variant):
    """Defaults of TensorFlow 1's layers, slopes, ends of the networks, initial weights."""
    vae = built(name, variant)
    for network in vae.networks.values():
        for layer in network.layers:
            inner = getattr(layer, "layer", layer)
            if isinstance(layer, keras.layers.BatchNormalization):
                assert (layer.momentum, layer.epsilon) == (0.99, 1e-3)
            elif isinstance(layer, keras.layers.LeakyReLU):
                assert layer.negative_slope == pytest.approx(0.1)
            elif is_convolution(layer) or isinstance(inner, keras.layers.Dense):
                assert type(inner.kernel_initializer).__name__ == "GlorotUniform"
                assert inner.use_bias
                ends = inner is network.layers[-1] and network is vae.decoder
                assert inner.activation.__name__ == ("tanh" if ends else "linear")
    assert type(vae.discriminator.layers[-1]).__name__ == "Dense"


@pytest.mark.parametrize("name", NAMES)
def test_deconvolutions_spread_the_latent_image(name):
    """All pixels depend on the latent vector, none on a border alone."""
    vae = built(name, "released")
    latent = np.random.default_rng(0).normal(size=(4, vae.latent_size)).astype("float32")
    images = np.asarray(vae.decoder(latent, training=False))
    assert images.shape == (4, *vae.image_shape)
    assert np.abs(images).max() < 1
    assert images.std(axis=0).min() > 0


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NAMES)
def test_networks_save_and_load(name, variant, tmp_path, rng):
    vae = reference_models.build(name, variant=variant, latent_size=3, channels=2)
    assert (vae.latent_size, vae.image_shape[-1]) == (3, 2)
    again = {}
    for part, network in vae.networks.items():
        assert network.name == f"{name}_{part}"
        randomise(network, 1, scale=0.05)
        path = reference_models.save(network, tmp_path / f"{part}.keras")
        again[part] = reference_models.load(path)
    images = rng.uniform(-1, 1, (2, *vae.image_shape)).astype("float32")
    latent = rng.normal(size=(2, 3)).astype("float32")
    for part, network in vae.networks.items():
        x = latent if part == "decoder" else images
        outputs = np.asarray(network(x, training=False))
        assert np.ptp(outputs) > 0
        np.testing.assert_array_equal(np.asarray(again[part](x, training=False)), outputs)
        # the next step of a power iteration too
        before, after = (np.asarray(n(x, training=True)) for n in (network, again[part]))
        np.testing.assert_array_equal(after, before)
    assert VaeGan(**again).image_shape == vae.image_shape


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "code"}, 'variant must be "text", .* or "released"'),
        ({"latent_size": 0}, "latent_size must be a whole number of at least 1"),
        ({"latent_size": 2.5}, "latent_size must be a whole number"),
        ({"channels": 0}, "channels must be a whole number of at least 1"),
    ],
)
def test_bad_settings(name, settings, message):
    assert name in reference_models.names()
    with pytest.raises(InputError, match=message):
        reference_models.build(name, **settings)
    with pytest.raises(TypeError, match="input_shape"):
        reference_models.build(name, input_shape=(30, 30, 1))


def spectral(shape, *, scale=1.0, **settings):
    """A layer with a random kernel and bias."""
    layer = SpectralConv2D(3, **{"kernel_size": 4, "padding": "same", **settings})
    layer.build((None, *shape))
    rng = np.random.default_rng(0)
    layer.kernel.assign(rng.normal(0, scale, layer.kernel.shape))
    layer.bias.assign(rng.normal(size=3))
    return layer


def norm_of(layer):
    """The largest singular value of the convolution as a dense matrix."""
    shape = layer.direction.shape[1:]
    basis = np.eye(int(np.prod(shape)), dtype="float32").reshape(-1, *shape)
    return np.linalg.norm(convolved(layer, basis).reshape(len(basis), -1), 2)


def convolved(layer, x):
    """Without spectral normalisation, by Keras's own convolution."""
    return np.asarray(
        keras.ops.conv(x, layer.kernel.value, strides=layer.strides, padding=layer.padding)
    )


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((6, 6, 2), {"strides": 2}),
        ((7, 5, 2), {"strides": 2}),
        ((6, 6, 2), {"kernel_size": 3}),
        ((6, 5, 1), {"strides": 2, "padding": "valid"}),
    ],
)
def test_sigma_is_the_norm_of_the_strided_convolution(shape, settings, rng):
    layer = spectral(shape, **settings)
    norm = norm_of(layer)
    x = rng.normal(size=(2, *shape)).astype("float32")
    step = tf.function(lambda: (layer(x, training=True), layer.spectral_norm())[1])
    found = np.array([float(step()) for _ in range(300)])
    assert found[0] < 0.999 * norm
    assert found.max() <= norm * (1 + 1e-5)
    assert found[-1] == pytest.approx(norm, rel=1e-3)
    # not the norm of the kernel as a matrix with one column per filter
    reshaped = np.linalg.norm(np.asarray(layer.kernel).reshape(-1, 3), 2)
    assert abs(found[-1] / reshaped - 1) > 0.02
    expected = convolved(layer, x) / found[-1] + np.asarray(layer.bias)
    np.testing.assert_allclose(layer(x, training=False), expected, rtol=1e-4, atol=1e-5)


def test_small_kernels_are_left_alone(rng):
    layer = spectral((6, 6, 2), scale=0.03, strides=2, activation="relu")
    assert 0.1 < norm_of(layer) < 1
    plain = keras.layers.Conv2D(3, 4, strides=2, padding="same", activation="relu")
    plain.build((None, 6, 6, 2))
    plain.set_weights(layer.get_weights()[:2])
    x = rng.normal(size=(2, 6, 6, 2)).astype("float32")
    for training in (False, True):
        np.testing.assert_array_equal(layer(x, training=training), plain(x))


def test_the_direction_moves_in_training_only(rng):
    layer = spectral((6, 6, 2), strides=2)
    x = rng.normal(size=(2, 6, 6, 2)).astype("float32")
    start = np.array(layer.direction)
    outputs = np.asarray(layer(x, training=False))
    np.testing.assert_array_equal(layer(x), outputs)
    np.testing.assert_array_equal(layer.direction, start)
    # the iteration's result is used in the same step, whether it is kept or not
    np.testing.assert_array_equal(layer(x, training=True), outputs)
    assert np.linalg.norm(layer.direction) == pytest.approx(1, abs=1e-5)
    assert np.abs(np.asarray(layer(x, training=False)) - outputs).max() > 1e-4
    assert [w.name for w in layer.trainable_weights] == ["kernel", "bias"]


def test_gradients_pass_through_sigma_and_the_iteration(rng):
    """Against finite differences in double precision, from a direction far from the last one."""
    with double_precision():
        layer = spectral((5, 4, 2), strides=2)
    x, weights = tf.constant(rng.normal(size=(2, 5, 4, 2))), rng.normal(size=(2, 3, 2, 3))

    @tf.function
    def loss():
        return tf.reduce_sum(layer(x, training=False) * weights)

    kernel = np.asarray(layer.kernel)
    with tf.GradientTape() as tape:
        value = loss()
    gradient = np.asarray(tape.gradient(value, layer.kernel.value))
    for _ in range(5):
        change = rng.normal(size=kernel.shape)
        step = 1e-6
        values = []
        for sign in (1, -1):
            layer.kernel.assign(kernel + sign * step * change)
            values.append(float(loss()))
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(float((gradient * change).sum()), rel=1e-5, abs=1e-7)
    # sigma is proportional to the kernel, so that the outputs do not depend on its scale
    layer.kernel.assign(2 * kernel)
    assert float(loss()) == pytest.approx(float(value), rel=1e-9)


def test_a_kernel_of_zeros_gives_no_nan(rng):
    layer = spectral((6, 6, 2), scale=0, strides=2)
    x = tf.constant(rng.normal(size=(2, 6, 6, 2)).astype("float32"))
    start = np.array(layer.direction)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(layer(x, training=True)))
    assert np.isfinite(tape.gradient(loss, layer.kernel.value)).all()
    np.testing.assert_array_equal(layer.direction, start)


def test_under_mixed_precision(rng):
    layer = spectral((6, 6, 2), strides=2, dtype="mixed_bfloat16")
    norm = norm_of(layer)
    x = rng.normal(size=(2, 6, 6, 2)).astype("float32")
    for _ in range(100):
        outputs = layer(x, training=True)
    assert outputs.dtype == tf.bfloat16
    assert layer.spectral_norm().dtype == tf.float32
    assert float(layer.spectral_norm()) == pytest.approx(norm, rel=1e-2)
    expected = convolved(layer, x) / norm + np.asarray(layer.bias)
    np.testing.assert_allclose(tf.cast(outputs, tf.float32), expected, atol=0.1)


@pytest.mark.parametrize(
    "settings",
    [{"dilation_rate": 2}, {"groups": 2}, {"data_format": "channels_first"}],
)
def test_convolutions_that_have_no_spectral_normalisation_here(settings):
    with pytest.raises(InputError, match="neither dilation nor groups; got"):
        SpectralConv2D(4, 3, **settings)


def test_images_of_unknown_size():
    with pytest.raises(InputError, match="needs images of known size"):
        SpectralConv2D(4, 3)(keras.Input((None, 8, 1)))


def test_the_texts_normalisation_is_keras(rng):
    """Always divides, in training, by the norm of the reshaped kernel; none on the last layer."""
    discriminator = reference_models.build("vae_gan_32", latent_size=2).discriminator
    wrapped = [x for x in discriminator.layers if type(x).__name__ == "SpectralNormalization"]
    wrapped[0].layer.kernel.assign(0.01 * np.asarray(wrapped[0].layer.kernel))
    images = rng.uniform(-1, 1, (1, 32, 32, 3)).astype("float32")
    last = np.asarray(discriminator.layers[-1].kernel)
    for _ in range(60):
        wrapped[0](images, training=True)
    kernel = np.asarray(wrapped[0].layer.kernel).reshape(27, 64)
    assert np.linalg.norm(kernel, 2) == pytest.approx(1, rel=1e-2)
    discriminator(images, training=True)
    np.testing.assert_array_equal(discriminator.layers[-1].kernel, last)
