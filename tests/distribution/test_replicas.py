"""Rows cut among devices: on virtual ones, in a process of its own."""

import subprocess
import sys

import numpy as np
import tensorflow as tf

from tfrobust import distribution

SCRIPT = """
import keras
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 3)
from tfrobust.classifier import derivatives as differentiate
from tfrobust import distribution

devices = [device.name for device in tf.config.list_logical_devices("CPU")]
x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
for count in (1, 3):
    traced = []

    def function(a, b, c):
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

        jacobian = differentiate.jacobian(model, x, batch_size=7)
        kernel = keras.ops.convert_to_numpy(model.layers[0].kernel)
        np.testing.assert_allclose(jacobian, np.broadcast_to(kernel.T, (20, 5, 4)))

        statistic = keras.Variable(np.zeros(2, "float32"))
        counter = keras.Variable(4, dtype="int32")
        if count > 1:

            def different():
                own = tf.distribute.get_replica_context().replica_id_in_sync_group
                statistic.value.assign(tf.stack([tf.cast(own, "float32"), 3.0]))

            tf.distribute.get_strategy().run(different)
            distribution.average([statistic, counter])
            for local in tf.distribute.get_strategy().experimental_local_results(statistic.value):
                np.testing.assert_allclose(local, [1.0, 3.0])
            assert int(keras.ops.convert_to_numpy(counter)) == 4
print("all is well")
"""


def test_virtual_devices():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert "all is well" in done.stdout, done.stderr[-3000:]


def test_one_process_is_alone():
    assert (distribution.replica_count(), distribution.worker_count()) == (1, 1)
    assert distribution.worker_index() == 0
    assert distribution.is_chief()
    assert not distribution.is_mirrored()
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        assert not distribution.is_mirrored()
    rows = np.arange(6).reshape(3, 2)
    assert distribution.gather_rows(rows) is rows
    assert distribution.broadcast_from_chief(1.5) == 1.5
