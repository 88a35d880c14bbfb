"""One device, several GPUs, several workers; and cohorts of models over a Dask cluster."""

from tfrobust.distribution.dask import SchedulerError, map_cohort
from tfrobust.distribution.rendezvous import WorkerTimeoutError
from tfrobust.distribution.replicas import (
    average,
    chief_says,
    gather_rows,
    host,
    hosts,
    is_chief,
    is_spread,
    replica_values,
    replicas,
    set_replica_values,
    spread,
)
from tfrobust.distribution.strategies import strategy

__all__ = [
    "SchedulerError",
    "WorkerTimeoutError",
    "average",
    "chief_says",
    "gather_rows",
    "host",
    "hosts",
    "is_chief",
    "is_spread",
    "map_cohort",
    "replica_values",
    "replicas",
    "set_replica_values",
    "spread",
    "strategy",
]
