"""Work sharded over the replicas and workers of the `tf.distribute` strategy in scope.

A worker is a process; a replica is a device with its copy of the variables. All workers must make
the same calls in the same order: a call by only some of them blocks until the others make it.
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
    "broadcast_from_chief",
    "gather_rows",
    "is_chief",
    "is_mirrored",
    "local_replica_count",
    "place_in_batch",
    "replica_count",
    "replica_values",
    "run_sharded",
    "set_replica_values",
    "worker_count",
    "worker_index",
]


def replica_count() -> int:
    """Number of replicas over all workers."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def place_in_batch(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """In a graph: where this device's part of a global batch starts, and the batch's rows.

    Args:
        rows: of the part, equally many on all devices.
    """
    context = tf.distribute.get_replica_context()
    first = rows * (context.replica_id_in_sync_group if context else 0)
    return first, rows * replica_count()


def worker_count() -> int:
    """Number of workers, usually one per machine."""
    return len(_tasks()) or 1


def worker_index() -> int:
    """Index of this worker, from 0."""
    tasks = _tasks()
    if not tasks:
        return 0
    resolver = tf.distribute.get_strategy().cluster_resolver
    return tasks.index((resolver.task_type, int(resolver.task_id)))


def is_chief() -> bool:
    """Whether this is the first or only worker, which writes files and shows progress."""
    return worker_index() == 0


def local_replica_count() -> int:
    """Number of replicas of this worker."""
    return replica_count() // worker_count()


def is_mirrored() -> bool:
    """Whether variables are mirrored over devices, and the call is not inside one replica."""
    kinds = (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)
    strategy = tf.distribute.get_strategy()
    return isinstance(strategy, kinds) and tf.distribute.in_cross_replica_context()


def gather_rows(rows: np.ndarray) -> np.ndarray:
    """Concatenate the rows (n, ...) of all workers in their order; n may differ.

    Values are sent as float64, which represents float32 and int32 exactly.
    """
    strategy = tf.distribute.get_strategy()
    if worker_count() == 1:
        return rows
    if 0 in rows.shape[1:]:
        # TensorFlow's collective gather of tensors without elements ends the process
        count = len(gather_rows(np.zeros((len(rows), 1))))
        return np.zeros((count, *rows.shape[1:]), rows.dtype)
    local = local_replica_count()
    wide = np.asarray(rows, np.float64)

    def local_rows(context: tf.distribute.DistributedValues) -> tf.Tensor:
        first = context.replica_id_in_sync_group % local == 0
        return tf.constant(wide if first else wide[:0])

    values = strategy.experimental_distribute_values_from_function(local_rows)
    return strategy.gather(values, axis=0).numpy().astype(rows.dtype)


def broadcast_from_chief(value: float) -> float:
    """The chief's value, returned on all workers once all have called this function."""
    return gather_rows(np.array([value], float))[0]


def average(variables: Sequence[keras.Variable]) -> None:
    """Set floating-point variables to their mean over all replicas.

    Moving averages of batch statistics differ between replicas, which see different examples.
    Integers (seeds, counters) do not differ and are unchanged.
    """
    if replica_count() == 1:
        return
    flat = gather_rows(_local_values(variables).mean(axis=0)[None]).mean(axis=0)
    for variable, values in _by_variable(variables, flat):
        variable.assign(values)


def replica_values(variables: Sequence[keras.Variable]) -> np.ndarray:
    """The floating-point variables per replica, flattened: (replicas, numbers) float64."""
    return gather_rows(_local_values(variables))


def set_replica_values(variables: Sequence[keras.Variable], values: np.ndarray) -> None:
    """Give each replica of this worker its row of `replica_values`."""
    results = tf.distribute.get_strategy().experimental_local_results
    first = worker_index() * local_replica_count()
    for k in range(local_replica_count()):
        for variable, value in _by_variable(variables, values[first + k]):
            component = results(variable.value)[k]
            component.assign(value.astype(component.dtype.as_numpy_dtype))


def _local_values(variables: Sequence[keras.Variable]) -> np.ndarray:
    results = tf.distribute.get_strategy().experimental_local_results
    rows = np.zeros((local_replica_count(), 0))
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


def run_sharded(function: Callable[..., Any], batched_args: int | None) -> Callable[..., Any]:
    """`function` with its batch sharded over this worker's replicas, the results concatenated.

    Args:
        function: maps tensors to a structure of tensors with one row per row of its arguments.
        batched_args: number of leading arguments that have one row per example; the others are
            passed to every replica unsharded. None: all arguments but scalars.
    """
    strategy = tf.distribute.get_strategy()
    count = local_replica_count()
    traces: dict[Any, Callable[..., Any]] = {}

    @tf.function(autograph=False)
    def run_shards(shards: list[list[tf.Tensor]]) -> Any:
        values = [
            strategy.experimental_distribute_values_from_function(
                lambda context, parts=parts: parts[context.replica_id_in_sync_group % count]
            )
            for parts in shards
        ]
        results = strategy.run(function, args=values)
        return tf.nest.map_structure(
            lambda result: tf.concat(strategy.experimental_local_results(result), 0), results
        )

    def run(*tensors: tf.Tensor) -> Any:
        length = int(tensors[0].shape[0])
        missing = -length % count

        def shards_of(position: int, tensor: tf.Tensor) -> list[tf.Tensor]:
            scalar = tensor.shape.rank == 0
            unsharded = scalar if batched_args is None else position >= batched_args
            if unsharded:
                return [tensor] * count
            if missing:  # shards have equal sizes; the results of the copies are cut off below
                tensor = tf.concat([tensor, tf.repeat(tensor[:1], missing, axis=0)], axis=0)
            return tf.split(tensor, count)

        shards = [shards_of(position, tensor) for position, tensor in enumerate(tensors)]
        specs = [[_any_rows(part) for part in parts] for parts in shards]
        key = tuple(spec for parts in specs for spec in parts)
        if key not in traces:  # traced once for all batch sizes
            traces[key] = run_shards.get_concrete_function(specs)
        return tf.nest.map_structure(lambda result: result[:length], traces[key](shards))

    return run


def _any_rows(tensor: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec([None, *tensor.shape[1:]] if tensor.shape.rank else [], tensor.dtype)


def _tasks() -> list[tuple[str, int]]:
    resolver = getattr(tf.distribute.get_strategy(), "cluster_resolver", None)
    if resolver is None:
        return []
    jobs = resolver.cluster_spec().as_dict()
    return [(job, k) for job in ("chief", "worker") for k in range(len(jobs.get(job, ())))]
