"""The `tf.distribute` strategy of one device, several GPUs or several workers.

    with distribution.strategy("auto").scope():
        model = reference_models.build("resnet50")
        fit(model, data, objective, optimizer=optimizer, epochs=20, batch_size=32)
        measure(model, images)

A worker is a process of a multi-worker run, usually one per machine. All workers run the same
program, each with TF_CONFIG set or inside one Slurm step (`srun`).
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import signal
import sys
import threading
from typing import Literal

import tensorflow as tf

from tfrobust.distribution.rendezvous import wait_for_workers
from tfrobust.errors import InputError

__all__ = ["strategy"]

Kind = Literal["auto", "one", "mirrored", "multi_worker"]


@dataclasses.dataclass(frozen=True)
class _Cluster:
    """The workers of a run, and the index of this process among them."""

    addresses: tuple[str, ...]
    index: int


def strategy(kind: Kind = "auto", *, timeout: float = 300.0) -> tf.distribute.Strategy:
    """The `tf.distribute` strategy for this machine's devices or the workers of TF_CONFIG or Slurm.

    With several workers, call it before any other function of TensorFlow.

    Args:
        kind: "one" device; "mirrored" over all GPUs of this machine; "multi_worker" over the
            workers of TF_CONFIG or of a Slurm step; "auto": "multi_worker" if there are workers,
            "mirrored" if there are several GPUs, else "one".
        timeout: seconds to wait for the other workers.

    Returns:
        the strategy; build the model in its `scope()` and call `fit` and `measure` there.

    Raises:
        InputError: unknown kind, a malformed TF_CONFIG, or no workers for "multi_worker".
        WorkerTimeoutError: a worker did not connect in time; names it.
    """
    if kind not in ("auto", "one", "mirrored", "multi_worker"):
        raise InputError(f'kind must be "auto", "one", "mirrored" or "multi_worker", got {kind!r}')
    cluster = _cluster() if kind in ("auto", "multi_worker") else None
    if cluster is not None and len(cluster.addresses) > 1:
        return _multi_worker(cluster, timeout)
    if kind == "multi_worker":
        raise InputError(
            "no other workers: set TF_CONFIG to {'cluster': {'worker': ['host1:port', "
            "'host2:port']}, 'task': {'type': 'worker', 'index': 0}}, with another index on each "
            "worker, or start the program with srun inside a Slurm job"
        )
    gpus = tf.config.list_logical_devices("GPU")
    if kind == "mirrored" or (kind == "auto" and len(gpus) > 1):
        return tf.distribute.MirroredStrategy()
    return tf.distribute.OneDeviceStrategy("GPU:0" if gpus else "CPU:0")


def _multi_worker(cluster: _Cluster, timeout: float) -> tf.distribute.Strategy:
    # TensorFlow's own rendezvous blocks indefinitely and ignores SIGINT
    wait_for_workers(cluster.addresses, cluster.index, timeout)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.addresses)}),
        task_type="worker",
        task_id=cluster.index,
        rpc_layer="grpc",
    )
    # if a worker has died in the meantime, end this process with a traceback instead of blocking
    watched = sys.__stderr__ is not None
    if watched:
        faulthandler.dump_traceback_later(max(60.0, timeout), exit=True, file=sys.__stderr__)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    finally:
        if watched:
            faulthandler.cancel_dump_traceback_later()
        _restore_sigterm()


def _restore_sigterm() -> None:
    """TensorFlow's service of workers catches SIGTERM for itself, and training would ignore it."""
    if threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(signal.SIGTERM)  # Python's, which has not changed
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _cluster() -> _Cluster | None:
    """The workers in TF_CONFIG, else those of the Slurm step."""
    text = os.environ.get("TF_CONFIG")
    if text:
        return _from_tf_config(text)
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in os.environ:
        return _from_slurm()
    return None


def _from_tf_config(text: str) -> _Cluster:
    try:
        config = json.loads(text)
        jobs = config["cluster"]
        order = [(job, k) for job in ("chief", "worker") for k in range(len(jobs.get(job, ())))]
        addresses = tuple(jobs[job][k] for job, k in order)
        task = config["task"]["type"], int(config["task"]["index"])
        return _Cluster(addresses, order.index(task))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"TF_CONFIG is malformed ({type(error).__name__}: {error}); it must be JSON such as "
            '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", '
            f'"index": 0}}}}, got {text[:200]}'
        ) from error


def _from_slurm() -> _Cluster:
    tasks = int(os.environ["SLURM_STEP_NUM_TASKS"])
    # for the addresses only: Slurm itself assigns GPUs to tasks (--gpus-per-task)
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
        jobs={"worker": tasks},
        port_base=int(os.environ.get("TFROBUST_PORT", 8888)),
        gpus_per_node=tasks,
        gpus_per_task=1,
        auto_set_gpu=False,
    )
    spec = resolver.cluster_spec().as_dict()
    return _Cluster(tuple(spec["worker"]), int(os.environ["SLURM_PROCID"]))
