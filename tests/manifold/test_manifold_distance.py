"""manifold.distance: a linear autoencoder in closed form, the search, draws, bad input."""

import keras
import numpy as np
import pytest
from helpers.small_vae_gan import small_images, small_vae_gan
from keras import layers

from tfrobust.errors import InputError
from tfrobust.manifold import VaeGan, distance


@pytest.fixture(scope="module")
def linear():
    """Encoder and decoder are matrices; the manifold is a plane of three dimensions."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(16, 3)))[0].astype(np.float32)
    encoder = keras.Sequential(
        [keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(6, name="moments")]
    )
    # a projection that is not orthogonal, and variances of exp(-2)
    skewed = basis + 0.3 * rng.normal(size=(16, 3)).astype(np.float32)
    kernel = np.concatenate([skewed, np.zeros((16, 3))], axis=1)
    encoder.get_layer("moments").set_weights([kernel, np.array([0, 0, 0, -2, -2, -2])])
    decoder = keras.Sequential([keras.Input((3,)), layers.Dense(16), layers.Reshape((4, 4, 1))])
    decoder.layers[0].set_weights([basis.T, np.zeros(16)])
    discriminator = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(1)])
    return VaeGan(encoder, decoder, discriminator), basis, skewed


@pytest.fixture
def x():
    return np.random.default_rng(1).uniform(-1, 1, (7, 4, 4, 1)).astype(np.float32)


def test_mean_of_a_linear_autoencoder(linear, x):
    vae, basis, skewed = linear
    flat = x.reshape(7, 16).astype(np.float64)
    latent = flat @ skewed
    found = distance(vae, x)
    np.testing.assert_allclose(found.latent, latent, atol=1e-5)
    np.testing.assert_allclose(found.projection.reshape(7, 16), latent @ basis.T, atol=1e-5)
    expected = np.linalg.norm(flat - latent @ basis.T, axis=1)
    np.testing.assert_allclose(found.distance, expected, rtol=1e-5)


def test_the_search_finds_the_orthogonal_projection(linear, x):
    vae, basis, _ = linear
    flat = x.reshape(7, 16).astype(np.float64)
    expected = np.linalg.norm(flat - flat @ basis @ basis.T, axis=1)
    found = distance(vae, x, by="search", steps=300)
    np.testing.assert_allclose(found.distance, expected, rtol=1e-4)
    np.testing.assert_allclose(found.latent, flat @ basis, atol=2e-3)


def test_draws_have_the_encoders_distribution(linear):
    vae, _, skewed = linear
    x = np.repeat(np.full((1, 4, 4, 1), 0.2, np.float32), 2000, axis=0)
    latent = distance(vae, x, by="sample", batch_size=500).latent
    np.testing.assert_allclose(latent.mean(axis=0), x[0].ravel() @ skewed, atol=0.04)
    np.testing.assert_allclose(latent.std(axis=0), np.exp(-1), rtol=0.06)


def test_draws_depend_on_the_seed_only(linear, x):
    vae, *_ = linear
    whole = distance(vae, x, by="sample", seed=5)
    parts = distance(vae, x, by="sample", seed=5, batch_size=2)
    # the draws; matrix products of other sizes are rounded otherwise on some processors
    np.testing.assert_allclose(whole.latent, parts.latent, rtol=1e-5, atol=1e-6)
    assert (distance(vae, x, by="sample", seed=6).latent != whole.latent).all()


def test_the_search_is_no_farther_than_the_mean():
    vae, x = small_vae_gan(), small_images(12)
    near = distance(vae, x, by="search", starts=2, steps=20)
    assert (near.distance <= distance(vae, x).distance + 1e-5).all()
    more = distance(vae, x, by="search", starts=4, steps=20)
    assert (more.distance <= near.distance + 1e-5).all()
    # what is reported belongs together
    decoded = vae.decoder(more.latent, training=False).numpy()
    np.testing.assert_allclose(decoded, more.projection, atol=1e-5)
    lengths = np.linalg.norm((x - more.projection).reshape(12, -1), axis=1)
    np.testing.assert_allclose(lengths, more.distance, rtol=1e-5)


def test_networks_are_in_inference_mode():
    vae, x = small_vae_gan(), small_images(6)
    alone = distance(vae, x[:1]).distance
    np.testing.assert_allclose(alone, distance(vae, x).distance[:1], rtol=1e-6)
    before = [v.numpy() for v in vae.decoder.variables]
    distance(vae, x, by="search", starts=1, steps=3)
    for a, b in zip(before, vae.decoder.variables, strict=True):
        np.testing.assert_array_equal(a, b.numpy())


def test_new_weights_are_seen_without_tracing_again(linear, x):
    vae, *_ = linear
    first = distance(vae, x).distance
    kernel, bias = vae.decoder.layers[0].get_weights()
    vae.decoder.layers[0].set_weights([kernel, bias + 0.1])
    assert (distance(vae, x).distance != first).all()
    vae.decoder.layers[0].set_weights([kernel, bias])
    np.testing.assert_array_equal(distance(vae, x).distance, first)


@pytest.mark.parametrize(
    ("shape", "scale", "settings", "message"),
    [
        ((3, 4, 4, 1), 3.0, {}, "rescale"),
        ((3, 5, 4, 1), 1.0, {}, "takes"),
        ((3, 4, 4, 3), 1.0, {}, "takes"),
        ((3, 4, 4, 1), np.nan, {}, "NaN"),
        ((0, 4, 4, 1), 1.0, {}, "empty"),
        ((3, 4, 4, 1), 1.0, {"by": "nearest"}, "by must be"),
        ((3, 4, 4, 1), 1.0, {"by": "search", "starts": 0}, "starts"),
        ((3, 4, 4, 1), 1.0, {"by": "search", "steps": 0}, "steps"),
        ((3, 4, 4, 1), 1.0, {"by": "search", "step_size": -1}, "step_size"),
    ],
)
def test_bad_input(linear, shape, scale, settings, message):
    with pytest.raises(InputError, match=message):
        distance(linear[0], scale * np.ones(shape, np.float32), **settings)
