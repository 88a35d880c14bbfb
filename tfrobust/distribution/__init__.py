"""One device, several GPUs, several workers; and cohorts of models over a Dask cluster."""

from tfrobust.distribution.dask import SchedulerError, map_cohort
from tfrobust.distribution.rendezvous import WorkerTimeoutError
from tfrobust.distribution.replicas import (
    average,
    broadcast_from_chief,
    gather_rows,
    is_chief,
    is_mirrored,
    place_in_batch,
    replica_count,
    replica_values,
    run_sharded,
    set_replica_values,
    worker_count,
    worker_index,
)
from tfrobust.distribution.strategies import strategy

__all__ = [
    "SchedulerError",
    "WorkerTimeoutError",
    "average",
    "broadcast_from_chief",
    "gather_rows",
    "is_chief",
    "is_mirrored",
    "map_cohort",
    "place_in_batch",
    "replica_count",
    "replica_values",
    "run_sharded",
    "set_replica_values",
    "strategy",
    "worker_count",
    "worker_index",
]
