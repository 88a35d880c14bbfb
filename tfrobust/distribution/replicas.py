"""The devices and hosts of the `tf.distribute` strategy in scope: work is cut among them here.

Every host makes the same calls in the same order. Where several hosts work together, a call that
only one of them makes waits for the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

__all__ = [
    "average",
    "chief_says",
    "gather_rows",
    "host",
    "hosts",
    "is_chief",
    "is_spread",
    "local_replicas",
    "replica_values",
    "replicas",
    "set_replica_values",
    "spread",
]


def replicas() -> int:
    """Devices that work together, over all hosts."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def hosts() -> int:
    """Processes that work together, usually one a machine."""
    return len(_tasks()) or 1


def host() -> int:
    """Index of this process among them, from 0."""
    tasks = _tasks()
    if not tasks:
        return 0
    resolver = tf.distribute.get_strategy().cluster_resolver
    return tasks.index((resolver.task_type, int(resolver.task_id)))


def is_chief() -> bool:
    """Whether this process writes files and shows progress: the first, or the only one."""
    return host() == 0


def local_replicas() -> int:
    """Devices of this process that work together."""
    return replicas() // hosts()


def is_spread() -> bool:
    """Whether variables are on several devices, and this is not one device's part of the work."""
    kinds = (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)
    strategy = tf.distribute.get_strategy()
    return isinstance(strategy, kinds) and tf.distribute.in_cross_replica_context()


def gather_rows(rows: np.ndarray) -> np.ndarray:
    """The rows (n, ...) of every host in the order of hosts; n may differ. Just `rows` on one host.

    Numbers travel as float64, which holds float32 and int32 exactly.
    """
    strategy = tf.distribute.get_strategy()
    if hosts() == 1:
        return rows
    local = local_replicas()
    wide = np.asarray(rows, np.float64)

    def of(context: tf.distribute.DistributedValues) -> tf.Tensor:
        first = context.replica_id_in_sync_group % local == 0
        return tf.constant(wide if first else wide[:0])

    values = strategy.experimental_distribute_values_from_function(of)
    return strategy.gather(values, axis=0).numpy().astype(rows.dtype)


def chief_says(value: float) -> float:
    """The first host's value, on all hosts; all wait here for one another."""
    return gather_rows(np.array([value], float))[0]


def average(variables: Sequence[keras.Variable]) -> None:
    """Give every device of every host the mean of what the devices hold.

    Batch statistics' moving averages differ between devices, each having seen its own examples;
    integers (seeds, counters) do not and are left alone.
    """
    if replicas() == 1:
        return
    flat = gather_rows(_local_values(variables).mean(axis=0)[None]).mean(axis=0)
    for variable, values in _by_variable(variables, flat):
        variable.assign(values)


def replica_values(variables: Sequence[keras.Variable]) -> np.ndarray:
    """What each replica holds of the floating-point variables, (replicas, numbers) float64."""
    return gather_rows(_local_values(variables))


def set_replica_values(variables: Sequence[keras.Variable], values: np.ndarray) -> None:
    """Give each replica of this worker its row of `replica_values`."""
    results = tf.distribute.get_strategy().experimental_local_results
    first = host() * local_replicas()
    for k in range(local_replicas()):
        for variable, value in _by_variable(variables, values[first + k]):
            component = results(variable.value)[k]
            component.assign(value.astype(component.dtype.as_numpy_dtype))


def _local_values(variables: Sequence[keras.Variable]) -> np.ndarray:
    results = tf.distribute.get_strategy().experimental_local_results
    rows = np.zeros((local_replicas(), 0))
    for variable in _floating(variables):
        values = [np.ravel(value).astype(np.float64) for value in results(variable.value)]
        rows = np.concatenate([rows, values], axis=1)
    return rows


def _by_variable(
    variables: Sequence[keras.Variable], flat: np.ndarray
) -> Iterator[tuple[keras.Variable, np.ndarray]]:
    start = 0
    for variable in _floating(variables):
        size = math.prod(variable.shape)
        yield variable, flat[start : start + size].reshape(variable.shape)
        start += size


def _floating(variables: Sequence[keras.Variable]) -> list[keras.Variable]:
    return [variable for variable in variables if "float" in str(variable.dtype)]


def spread(function: Callable[..., Any], rowwise: int | None) -> Callable[..., Any]:
    """`function` over this host's devices: rows are cut among them and joined again.

    Args:
        function: takes tensors, returns a structure of tensors with a row for each row it is given.
        rowwise: how many leading arguments have rows; the others go whole to every device. All
            arguments but scalars where None.
    """
    strategy = tf.distribute.get_strategy()
    count = local_replicas()
    traces: dict[Any, Callable[..., Any]] = {}

    @tf.function(autograph=False)
    def together(pieces: list[list[tf.Tensor]]) -> Any:
        values = [
            strategy.experimental_distribute_values_from_function(
                lambda context, piece=piece: piece[context.replica_id_in_sync_group % count]
            )
            for piece in pieces
        ]
        results = strategy.run(function, args=values)
        return tf.nest.map_structure(
            lambda result: tf.concat(strategy.experimental_local_results(result), 0), results
        )

    def run(*tensors: tf.Tensor) -> Any:
        length = int(tensors[0].shape[0])
        missing = -length % count

        def parts_of(position: int, tensor: tf.Tensor) -> list[tf.Tensor]:
            whole = position >= rowwise if rowwise is not None else tensor.shape.rank == 0
            if whole:
                return [tensor] * count
            if missing:  # every device gets as many rows; the copies are cut off again
                tensor = tf.concat([tensor, tf.repeat(tensor[:1], missing, axis=0)], axis=0)
            return tf.split(tensor, count)

        pieces = [parts_of(position, tensor) for position, tensor in enumerate(tensors)]
        specs = [[_any_rows(part) for part in piece] for piece in pieces]
        key = tuple(spec for piece in specs for spec in piece)
        if key not in traces:  # once for all batch sizes
            traces[key] = together.get_concrete_function(specs)
        return tf.nest.map_structure(lambda result: result[:length], traces[key](pieces))

    return run


def _any_rows(tensor: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec([None, *tensor.shape[1:]] if tensor.shape.rank else [], tensor.dtype)


def _tasks() -> list[tuple[str, int]]:
    resolver = getattr(tf.distribute.get_strategy(), "cluster_resolver", None)
    if resolver is None:
        return []
    jobs = resolver.cluster_spec().as_dict()
    return [(job, k) for job in ("chief", "worker") for k in range(len(jobs.get(job, ())))]
