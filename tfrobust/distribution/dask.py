"""A cohort's members are independent: one after another, or on the workers of a Dask scheduler."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tqdm import tqdm

from tfrobust.errors import TfrobustError

__all__ = ["SchedulerError", "map_cohort"]

# Keras's global state (seeds, policy, session) is one a process
_ONE_AT_A_TIME = threading.Lock()


class SchedulerError(TfrobustError, RuntimeError):
    """A Dask scheduler is out of reach, has no workers, or lost too many of them."""


def map_cohort(
    function: Callable[[Any], Any],
    members: Iterable[Any],
    *,
    scheduler: str | None = None,
    timeout: float = 30.0,
    lost_workers: int = 3,
) -> list[Any]:
    """`function(member)` for every member, in order.

    Here, one after another, or on the workers of a running Dask scheduler. A worker that is lost
    has its member given to another one; a function that keeps checkpoints on shared storage then
    goes on after its last finished epoch.

    Args:
        function: importable on the workers, or small enough to travel; it returns plain data and
            leaves models and tables on storage that all workers share.
        members: plain data, one item a member.
        scheduler: address, "tcp://host:8786". Only connect to schedulers that you trust: Dask
            executes what it is sent.
        timeout: seconds to wait for the scheduler, and for its first worker.
        lost_workers: times a member is given to another worker before the cohort fails.

    Returns:
        the results, in the order of the members.

    Raises:
        SchedulerError: no scheduler at that address, no worker, or a member whose workers died
            again and again.
        Exception: what `function` raised; results of other members that are on storage stay there.
    """
    members = list(members)
    if scheduler is None:
        return [function(member) for member in members]
    from distributed import Client, as_completed
    from distributed.comm import get_address_host_port
    from distributed.scheduler import KilledWorker

    try:
        # asked first: a client that did not connect can lock up the next one when it is collected
        _knock(get_address_host_port(scheduler, strict=True), timeout)
        client = Client(scheduler, timeout=timeout)
    except (OSError, ValueError) as error:
        raise SchedulerError(
            f"no Dask scheduler answers at {scheduler} within {timeout:g} s ({error}). Start one "
            "with `dask scheduler` and give its address, for instance tcp://host:8786."
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=timeout)
        except TimeoutError as error:
            raise SchedulerError(
                f"the scheduler at {scheduler} has no workers after {timeout:g} s. Start some with "
                f"`dask worker {scheduler} --nthreads 1`, one a GPU."
            ) from error
        client.run_on_scheduler(_allow, lost_workers)
        futures = [client.submit(_alone, function, member, pure=False) for member in members]
        try:
            with tqdm(total=len(futures), desc="cohort", unit="model", disable=None) as bar:
                for _ in as_completed(futures):
                    bar.update()
            return client.gather(futures)
        except KilledWorker as error:
            raise SchedulerError(
                f"{lost_workers + 1} workers were lost with the same member ({error}). Look at the "
                "workers' logs: out of memory is the usual cause. Finished members are kept."
            ) from error
        finally:
            client.cancel(futures)


def _knock(address: tuple[str, int], timeout: float) -> None:
    """Return once something listens at an address; OSError if nothing does in time."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection(address, max(deadline - time.monotonic(), 0.1)).close()
            return
        except OSError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.2)


def _alone(function: Callable[[Any], Any], member: Any) -> Any:
    with _ONE_AT_A_TIME, _own_random_numbers():
        return function(member)


@contextlib.contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Give this thread a generator of its own behind Python's `random`.

    Keras draws the seeds of initializers and dropout from the module's shared generator, and so do
    Dask's threads when they time a new worker's disk and network: what they draw in between would
    change a seeded network.
    """
    here, own = threading.get_ident(), random.Random()
    shared = {
        name: function
        for name, function in vars(random).items()
        if isinstance(getattr(function, "__self__", None), random.Random)
    }

    def dispatch(name: str) -> Callable[..., Any]:
        def draw(*args: Any, **kwargs: Any) -> Any:
            mine = threading.get_ident() == here
            return (getattr(own, name) if mine else shared[name])(*args, **kwargs)

        return draw

    vars(random).update({name: dispatch(name) for name in shared})
    try:
        yield
    finally:
        vars(random).update(shared)


def _allow(lost_workers: int, dask_scheduler: Any = None) -> None:
    dask_scheduler.allowed_failures = lost_workers
