"""manifold.train: losses and updates against NumPy, a killed run, bad input."""

import dataclasses
import shutil
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import small_vae_gan
from helpers.processes import Child
from helpers.small_vae_gan import SETTINGS, small_images, variables
from scipy.special import log_expit

from tfrobust.errors import InputError, StorageError
from tfrobust.manifold import VaeGan, steps, train
from tfrobust.training import (
    DamagedCheckpointError,
    NonFiniteLossError,
    SettingsChangedError,
)


def called(model, x):
    """In training mode, in double precision where it matters, leaving the statistics alone."""
    before = [v.numpy() for v in model.variables]
    result = np.asarray(model(x, training=True), np.float64)
    for variable, value in zip(model.variables, before, strict=True):
        variable.assign(value)
    return result


def test_losses_are_the_papers(rng):
    vae, x = small_vae_gan.small_vae_gan(), small_images(6)
    noise, prior = rng.normal(size=(2, 6, 3)).astype(np.float32)
    moments = called(vae.encoder, x)
    mean, log_variance = moments[:, :3], moments[:, 3:]
    z = (mean + np.exp(log_variance / 2) * noise).astype(np.float32)
    reconstruction, sample = called(vae.decoder, z), called(vae.decoder, prior)
    l1 = np.abs(x - reconstruction).sum(axis=(1, 2, 3))
    kl = -0.5 * (1 + log_variance - mean**2 - np.exp(log_variance)).sum(axis=1)
    loss, parts = steps.encoder_loss(vae, tf.constant(x), tf.constant(noise))
    np.testing.assert_allclose(loss, np.mean(l1 + kl), rtol=1e-5)
    np.testing.assert_allclose(parts["reconstruction"], l1.mean(), rtol=1e-5)
    np.testing.assert_allclose(parts["kl"], kl.mean(), rtol=1e-5)

    d_real, d_rec, d_prior = (
        called(vae.discriminator, image.astype(np.float32))[:, 0]
        for image in (x, reconstruction, sample)
    )
    # log D = log sigmoid(d), log(1 - D) = log sigmoid(-d)
    expected = np.mean(0.01 * l1 - log_expit(d_rec) - log_expit(d_prior))
    arguments = tf.constant(x), tf.constant(noise), tf.constant(prior)
    vae = small_vae_gan.small_vae_gan()  # the calls above have moved statistics
    np.testing.assert_allclose(steps.decoder_loss(vae, *arguments, 0.01), expected, rtol=1e-5)
    expected = -np.mean(log_expit(d_real) + log_expit(-d_rec) + log_expit(-d_prior))
    vae = small_vae_gan.small_vae_gan()
    np.testing.assert_allclose(steps.discriminator_loss(vae, *arguments), expected, rtol=1e-5)


def test_kl_is_the_divergence_of_normal_distributions():
    # sampled: E_q[log q(z) - log p(z)]
    vae = small_vae_gan.small_vae_gan()
    _, parts = steps.encoder_loss(vae, tf.constant(small_images(8)), tf.zeros([8, 3]))
    vae = small_vae_gan.small_vae_gan()
    moments = called(vae.encoder, small_images(8))
    mean, deviation = moments[:, :3], np.exp(moments[:, 3:] / 2)
    draws = np.random.default_rng(0).normal(size=(100_000, 1, 1))
    z = mean + deviation * draws
    log_ratio = -0.5 * draws**2 - np.log(deviation) + 0.5 * z**2
    expected = log_ratio.mean(axis=0).sum(axis=1).mean()
    np.testing.assert_allclose(parts["kl"], expected, rtol=0.02)


def test_an_update_changes_one_network_and_its_statistics_only():
    vae, x = small_vae_gan.small_vae_gan(), tf.constant(small_images(10))
    optimizers = {name: keras.optimizers.SGD(0.01) for name in vae.networks}
    for name, loss_of in {
        "encoder": lambda: steps.encoder_loss(vae, x, tf.zeros([10, 3])),
        "decoder": lambda: (
            steps.decoder_loss(vae, x, tf.zeros([10, 3]), tf.ones([10, 3]), 0.01),
            {},
        ),
        "discriminator": lambda: (
            steps.discriminator_loss(vae, x, tf.zeros([10, 3]), tf.ones([10, 3])),
            {},
        ),
    }.items():
        before = variables(vae)
        steps.update(vae, name, optimizers, loss_of)
        after = variables(vae)
        for other, values in after.items():
            moved = [not np.array_equal(a, b) for a, b in zip(before[other], values, strict=True)]
            assert all(moved) if other == name else not any(moved)


def test_the_discriminator_takes_several_steps():
    vae = small_vae_gan.small_vae_gan()
    optimizers = {name: keras.optimizers.SGD(0.05) for name in vae.networks}
    step = steps.compile_step(vae, optimizers, weight=0.01, discriminator_steps=3, seed=0)
    losses = step(tf.constant(small_images(10)), tf.constant(0))
    assert losses.keys() == set(steps.LOSSES)
    assert {name: int(each.iterations) for name, each in optimizers.items()} == {
        "encoder": 1,
        "decoder": 1,
        "discriminator": 3,
    }


@pytest.fixture(scope="module")
def diverged(tmp_path_factory):
    """A run that learns for eight epochs and diverges in the ninth."""
    vae, records, weights = small_vae_gan.small_vae_gan(), [], {}
    folder = tmp_path_factory.mktemp("run")

    def callback(record, network):
        records.append(record)
        if record["epoch"] == 8:
            weights.update(variables(network))
            kernel = network.decoder.trainable_variables[0]
            kernel.assign(np.full(kernel.shape, np.nan))

    with pytest.raises(NonFiniteLossError) as error:
        train(
            vae,
            small_images(100),
            epochs=9,
            folder=folder,
            pictures_every=4,
            callbacks=[callback],
            learning_rate=1e-2,
            **{**SETTINGS, "reconstruction_weight": 1.0},
        )
    return SimpleNamespace(
        vae=vae, records=records, weights=weights, folder=folder, error=str(error.value)
    )


def test_training_learns_to_reconstruct_and_draws_pictures(diverged):
    losses = [record["reconstruction"] for record in diverged.records]
    assert [record["epoch"] for record in diverged.records] == list(range(1, 9))
    assert losses[-1] < 0.6 * losses[0]
    pictures = sorted(path.name for path in diverged.folder.glob("pictures-*.png"))
    assert pictures == ["pictures-0004.png", "pictures-0008.png"]


def test_a_diverging_run_restores_the_newest_checkpoint(diverged):
    assert "epoch 9" in diverged.error and "learning rate" in diverged.error
    for name, values in variables(diverged.vae).items():
        for before, after in zip(diverged.weights[name], values, strict=True):
            np.testing.assert_array_equal(before, after)


def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    folders = [tmp_path / name for name in ("whole", "killed")]
    whole = Child(small_vae_gan.run, str(folders[0]), 3)
    killed = Child(small_vae_gan.run, str(folders[1]), 3, 2)  # within the second epoch
    assert killed.wait() == 9
    assert (folders[1] / "step-000000004.npz").exists()  # the end of the first
    resumed = Child(small_vae_gan.run, str(folders[1]), 3)
    resumed.finished()
    whole.finished()
    with np.load(folders[0] / "weights.npz") as a, np.load(folders[1] / "weights.npz") as b:
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_another_setting_or_a_damaged_checkpoint_is_refused(diverged, tmp_path):
    folder = shutil.copytree(diverged.folder, tmp_path / "run")
    same = {**SETTINGS, "reconstruction_weight": 1.0, "learning_rate": 1e-2, "folder": folder}
    vae, images = small_vae_gan.small_vae_gan(), small_images(100)
    for changed in ({"reconstruction_weight": 0.02}, {"beta_2": 0.999}, {"seed": 4}):
        with pytest.raises(SettingsChangedError, match="another folder"):
            train(vae, images, epochs=9, **{**same, **changed})
    with pytest.raises(SettingsChangedError, match="images"):
        train(vae, small_images(100, seed=1), epochs=9, **same)
    newest = max(folder.glob("step-*.npz"))
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(DamagedCheckpointError, match=newest.name):
        train(vae, images, epochs=9, **same)


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (small_images(5), {}, "do not fill one batch"),
        (small_images(20)[:, :4], {}, "takes"),
        (small_images(20) * 2, {}, "rescale"),
        (small_images(20), {"epochs": 0}, "epochs"),
        (small_images(20), {"learning_rate": 0}, "learning_rate"),
        (small_images(20), {"reconstruction_weight": -1}, "reconstruction_weight"),
        (small_images(20), {"discriminator_steps": 0}, "discriminator_steps"),
        (small_images(20), {"checkpoint_every": 2}, "folder"),
        (np.full((20, 8, 8, 1), np.nan), {}, "NaN"),
    ],
)
def test_bad_input(images, settings, message):
    with pytest.raises(InputError, match=message):
        train(small_vae_gan.small_vae_gan(), images, **{"epochs": 1, **SETTINGS, **settings})


def test_a_folder_that_is_a_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        train(small_vae_gan.small_vae_gan(), small_images(20), epochs=1, folder=file, **SETTINGS)


def test_networks_that_do_not_fit_together():
    vae, other = small_vae_gan.small_vae_gan(), small_vae_gan.small_vae_gan(latent_size=5)
    with pytest.raises(InputError, match="encoder"):
        VaeGan(vae.encoder, other.decoder, vae.discriminator)
    with pytest.raises(InputError, match="decoder"):
        coloured = small_vae_gan.small_vae_gan(channels=3)
        VaeGan(vae.encoder, coloured.decoder, vae.discriminator)
    with pytest.raises(InputError, match="value_range"):
        dataclasses.replace(vae, value_range=(1, -1))
