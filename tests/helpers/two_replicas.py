"""Training and derivatives on virtual devices, for processes of their own: devices are set once."""

import keras
import numpy as np
import tensorflow as tf

from helpers.small_training import sgd, small_data
from tfrobust import CrossEntropy, DoubleBackprop, WeightDecay, distribution, fit
from tfrobust.classifier import jacobian, predict_logits

layers = keras.layers


def virtual_devices(count):
    """Names of as many logical devices, which share the processor."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    virtual = [tf.config.LogicalDeviceConfiguration() for _ in range(count)]
    tf.config.set_logical_device_configuration(cpu, virtual)
    return [device.name for device in tf.config.list_logical_devices("CPU")]


def train_on_one_and_on_two():
    """The same training, penalties included, with and without MirroredStrategy."""
    names = virtual_devices(2)

    def weights(strategy):
        with strategy.scope():
            keras.utils.set_random_seed(0)
            head = [layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), layers.Dense(3)]
            model = keras.Sequential([keras.Input((6, 6, 1)), *head])
            objective = CrossEntropy() + DoubleBackprop(0.1) + WeightDecay(0.01)
            fit(model, small_data(), objective, optimizer=sgd(), epochs=2, batch_size=30)
        return model.get_weights()

    one = weights(tf.distribute.get_strategy())
    two = weights(tf.distribute.MirroredStrategy(names))
    for mine, theirs in zip(one, two, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


class Net(keras.Model):
    """Ends in a softmax, behind batch normalisation over all devices."""

    def __init__(self):
        super().__init__()
        self.first, self.relu = layers.Dense(8), layers.ReLU()
        self.norm = layers.BatchNormalization(synchronized=True)
        self.head = layers.Dense(3, activation="softmax")

    def call(self, x, training=False):
        return self.head(self.relu(self.norm(self.first(x), training=training)))


def train_with_a_softmax():
    """Its probabilities are still the softmax of its logits afterwards."""
    with tf.distribute.MirroredStrategy(virtual_devices(2)).scope():
        keras.utils.set_random_seed(0)
        model = Net()
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(64, 6)).astype("f4"), rng.integers(0, 3, 64)
        model(x[:2])
        fit(
            model,
            (x, y),
            CrossEntropy() + DoubleBackprop(0.1),
            optimizer=keras.optimizers.SGD(0.01),
            epochs=1,
            batch_size=16,
            progress=False,
        )
        logits = predict_logits(model, x)
    assert model.head.activation is keras.activations.softmax
    np.testing.assert_allclose(np.asarray(model(x)).sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(tf.nn.softmax(logits), model(x), atol=1e-5)


def shard_rows():
    """Rows cut among one and three devices, and averages over them."""
    devices = virtual_devices(3)
    x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    for count in (1, 3):
        traced = []

        def function(a, b, c, traced=traced):
            traced.append(1)
            return a * b, tf.reduce_sum(a, 1) + c

        with tf.distribute.MirroredStrategy(devices[:count]).scope():
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
            assert distribution.is_mirrored()
            run = distribution.run_sharded(function, None)
            for rows in (1, 2, 3, 5, 7, 20):
                some = x[:rows]
                product, total = run(tf.constant(some), tf.constant(2 * some), tf.constant(3.0))
                np.testing.assert_allclose(product, 2 * some**2, rtol=1e-6)
                np.testing.assert_allclose(total, some.sum(1) + 3, rtol=1e-5, atol=1e-6)
            assert len(traced) == count, "traced again for another batch size"
            whole = distribution.run_sharded(lambda a, b: a + tf.reduce_sum(b), 1)
            table = tf.range(7.0)  # not cut, though it has an axis
            np.testing.assert_allclose(whole(tf.constant(x), table), x + 21, rtol=1e-6)
            kernel = keras.ops.convert_to_numpy(model.layers[0].kernel)
            expected = np.broadcast_to(kernel.T, (20, 5, 4))
            np.testing.assert_allclose(jacobian(model, x, batch_size=7), expected)
            if count > 1:
                _average_over_replicas()


def _average_over_replicas():
    statistic = keras.Variable(np.zeros(2, "float32"))
    counter = keras.Variable(4, dtype="int32")

    def different():
        index = tf.distribute.get_replica_context().replica_id_in_sync_group
        statistic.value.assign(tf.stack([tf.cast(index, "float32"), 3.0]))

    strategy = tf.distribute.get_strategy()
    strategy.run(different)
    distribution.average([statistic, counter])
    for local in strategy.experimental_local_results(statistic.value):
        np.testing.assert_allclose(local, [1.0, 3.0])
    assert int(keras.ops.convert_to_numpy(counter)) == 4
