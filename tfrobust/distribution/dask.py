"""The independent members of a cohort, run in sequence or on the workers of a Dask scheduler."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from tfrobust.errors import TfrobustError
from tfrobust.locks import shared_with_members

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["SchedulerError", "map_cohort"]

# Keras's global state (seeds, policy, session) is shared by all threads of a process
_ONE_MEMBER_PER_PROCESS = threading.Lock()
_POLL_SECONDS = 2.0


class SchedulerError(TfrobustError, RuntimeError):
    """A Dask scheduler is unreachable, has no workers, or lost too many of them."""


def map_cohort(
    function: Callable[[Any], Any],
    members: Iterable[Any],
    *,
    scheduler: str | None = None,
    timeout: float = 30.0,
    lost_workers: int = 3,
) -> list[Any]:
    """`function(member)` for every member, in order.

    Without a scheduler the members run in sequence in this process; otherwise on the workers of a
    running Dask scheduler, one member per worker process at a time. When a worker dies, its member
    is sent to another one; a function that writes checkpoints to shared storage then resumes after
    its last finished epoch. Members of one cohort share its run folder; for a folder that only one
    process may write to, such as that of `fit`, a member waits.

    Args:
        function: importable on the workers, or small enough to be pickled; returns plain data and
            writes models and tables to storage that all workers share.
        members: one item of plain data per member, such as a dict of its settings.
        scheduler: address, "tcp://host:8786". Only connect to schedulers that you trust: Dask
            executes what it is sent.
        timeout: seconds to wait for the scheduler's answer, and for a worker, at the start and
            when all workers have died. The same limit holds for any other server that listens at
            the address.
        lost_workers: how often a member is sent to another worker before the cohort fails.

    Returns:
        the results, in the order of the members.

    Raises:
        SchedulerError: no scheduler at that address, or it died; no worker for `timeout` seconds;
            or one member's workers died more than `lost_workers` times.
        Exception: as raised by `function`, once all members have ended; what other members wrote to
            storage is kept.
    """
    members = list(members)
    if scheduler is None:
        return [function(member) for member in members]
    from distributed import CancelledError
    from distributed.scheduler import KilledWorker

    with _connected(scheduler, timeout) as client:
        client.run_on_scheduler(_set_allowed_failures, lost_workers)
        futures = [client.submit(_run_member, function, member, pure=False) for member in members]
        try:
            _wait_for_all(client, futures, timeout)
            return client.gather(futures)
        except KilledWorker as error:
            member = next(m for m, f in zip(members, futures, strict=True) if f.key == error.task)
            raise SchedulerError(
                f"{lost_workers + 1} workers were lost with the same member, {member!r} ({error}). "
                "Look at the workers' logs: out of memory is the usual cause. Finished members are "
                "kept."
            ) from error
        except CancelledError as error:  # Dask cancels all futures when the connection closes
            raise SchedulerError(
                f"lost the connection to the scheduler at {scheduler}. Finished members are kept: "
                "start the scheduler and its workers again, then the same command."
            ) from error
        finally:
            client.cancel(futures)


@contextlib.contextmanager
def _connected(address: str, timeout: float) -> Iterator[Client]:
    """A client whose scheduler has answered and has a worker."""
    from distributed import Client

    try:
        # before a client is created: one that could not connect can block the next one when it is
        # garbage-collected
        _in_time(lambda: asyncio.run(_handshake(address, timeout)), timeout)
        client = _in_time(lambda: Client(address, timeout=timeout), timeout)
    except Exception as error:  # Dask raises many kinds for the answer of another server
        reason = str(error) or type(error).__name__
        raise SchedulerError(
            f"no Dask scheduler answers at {address} within {timeout:g} s ({reason}). Start one "
            "with `dask scheduler` and give its address, for instance tcp://host:8786."
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=timeout)
        except TimeoutError as error:
            raise SchedulerError(
                f"the scheduler at {address} has no workers after {timeout:g} s. Start some with "
                f"`dask worker {address} --nthreads 1`, one per GPU."
            ) from error
        yield client


async def _handshake(address: str, timeout: float) -> None:
    """Ask what listens at an address. Dask's own time-out covers only the connection."""
    from distributed import Security
    from distributed.comm import connect

    async with asyncio.timeout(timeout):
        arguments = Security().get_connection_args("client")
        comm = await connect(address, timeout=timeout, **arguments)
        try:
            await comm.write({"op": "identity", "n_workers": 0, "reply": True})
            kind = (await comm.read())["type"]
        finally:
            comm.abort()
    if kind != "Scheduler":
        raise ConnectionError(f"a Dask {kind} answers there")


def _in_time(function: Callable[[], Any], timeout: float) -> Any:
    """`function()`, run in a thread that is abandoned a second after `timeout`."""
    result: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def run() -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result.result(timeout + 1)


def _wait_for_all(client: Client, futures: list[Future], timeout: float) -> None:
    """Return once every member has a result or an error.

    Raises:
        SchedulerError: no worker, or no answer of the scheduler, for `timeout` seconds.
    """
    from distributed import wait

    pending, last_worker_seen = set(futures), time.monotonic()
    with tqdm(total=len(futures), desc="cohort", unit="model", disable=None) as bar:
        while pending:
            with contextlib.suppress(TimeoutError):
                finished = wait(pending, timeout=_POLL_SECONDS, return_when="FIRST_COMPLETED").done
                pending -= finished
                bar.update(len(finished))
            if not pending or _has_workers(client, timeout):
                last_worker_seen = time.monotonic()
            elif time.monotonic() - last_worker_seen > timeout:
                raise SchedulerError(
                    f"all workers died, and no new one connected within {timeout:g} s: "
                    f"{len(pending)} members are unfinished. Look at the workers' logs, start "
                    "workers again and then run the same command. Finished members are kept."
                )


def _has_workers(client: Client, timeout: float) -> bool:
    try:
        identity = client.sync(client.scheduler.identity, n_workers=-1, callback_timeout=timeout)
    except TimeoutError as error:
        raise SchedulerError(
            f"the scheduler has not answered for {timeout:g} s. Finished members are kept."
        ) from error
    except OSError:  # a closed connection, which the futures report
        return False
    return bool(identity["workers"])


def _run_member(function: Callable[[Any], Any], member: Any) -> Any:
    with _ONE_MEMBER_PER_PROCESS, _private_random_generator(), shared_with_members():
        return function(member)


@contextlib.contextmanager
def _private_random_generator() -> Iterator[None]:
    """Give the functions of Python's `random` a separate generator in this thread.

    Keras draws the seeds of initializers and dropout from the module's shared generator, and Dask's
    threads draw from it when they measure a new worker's disk and network: interleaved draws would
    change a seeded network.
    """
    thread, generator = threading.get_ident(), random.Random()
    shared = {
        name: function
        for name, function in vars(random).items()
        if isinstance(getattr(function, "__self__", None), random.Random)
    }

    def dispatch(name: str) -> Callable[..., Any]:
        def draw(*args: Any, **kwargs: Any) -> Any:
            private = threading.get_ident() == thread
            return (getattr(generator, name) if private else shared[name])(*args, **kwargs)

        return draw

    vars(random).update({name: dispatch(name) for name in shared})
    try:
        yield
    finally:
        vars(random).update(shared)


def _set_allowed_failures(count: int, dask_scheduler: Any = None) -> None:
    dask_scheduler.allowed_failures = count
