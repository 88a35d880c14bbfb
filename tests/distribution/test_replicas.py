"""Rows cut among devices: on virtual ones, in a process of its own."""

import numpy as np
import tensorflow as tf
from helpers import two_replicas
from helpers.processes import Child

from tfrobust import distribution


def test_virtual_devices():
    Child(two_replicas.shard_rows).finished()


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
