"""The independent members of a cohort, run in sequence or on the workers of a Dask scheduler."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from tfrobust.errors import TfrobustError
from tfrobust.member_process import MemberLostError, run_member

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["SchedulerError", "map_cohort"]

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
    running Dask scheduler, one member per worker at a time, each in a process of its own. When that
    process or its worker dies, the member is started again on any worker; a function that writes
    checkpoints to shared storage then resumes after its last finished epoch. When this call ends,
    by an error or an interrupt, so do its members. Members of one cohort share its run folder; for
    a folder that only one process may write to, such as that of `fit`, a member waits.

    Args:
        function: importable on the workers, or small enough to be pickled; returns plain data and
            writes models and tables to storage that all workers share.
        members: one item of plain data per member, such as a dict of its settings.
        scheduler: address, "tcp://host:8786". Only connect to schedulers that you trust: Dask
            executes what it is sent.
        timeout: seconds to wait for the scheduler's answer, and for a worker, at the start and
            when all workers have died. The same limit holds for any other server that listens at
            the address.
        lost_workers: how often a member is started again before the cohort fails.

    Returns:
        the results, in the order of the members.

    Raises:
        SchedulerError: no scheduler at that address, or it died or does not answer; no worker for
            `timeout` seconds; or one member's process or worker died more than `lost_workers`
            times.
        Exception: as raised by `function`, once all members have ended; what other members wrote to
            storage is kept.
    """
    members = list(members)
    if scheduler is None:
        return [function(member) for member in members]
    with _quiet_dask(), _connected(scheduler, timeout) as client:
        client.run_on_scheduler(_set_allowed_failures, lost_workers)
        return _run_all(client, function, members, scheduler, timeout, lost_workers)


@contextlib.contextmanager
def _quiet_dask() -> Iterator[None]:
    """Without Dask's tracebacks on stderr in this process: errors say what they tell."""
    import distributed  # adds its handlers

    handlers = logging.getLogger(distributed.__name__).handlers
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)


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


def _run_all(
    client: Client,
    function: Callable[[Any], Any],
    members: Sequence[Any],
    address: str,
    timeout: float,
    lost_workers: int,
) -> list[Any]:
    """Results of all members, each of which is started again when its process is lost."""
    from distributed import CancelledError
    from distributed.protocol.pickle import dumps, loads
    from distributed.scheduler import KilledWorker

    def submit(place: int) -> Future:
        return client.submit(run_member, dumps((function, members[place])), pure=False)

    def lost_too_often(place: int, error: Exception) -> SchedulerError:
        return SchedulerError(
            f"{lost_workers + 1} processes or workers were lost with the same member, "
            f"{members[place]!r} ({error}). Look at the workers' logs: out of memory is the usual "
            "cause. Finished members are kept."
        )

    running = {submit(place): place for place in range(len(members))}
    outcomes: dict[int, tuple[Any, Exception | None]] = {}
    losses: collections.Counter[int] = collections.Counter()
    try:
        with tqdm(total=len(members), desc="cohort", unit="model", disable=None) as bar:
            while running:
                for future in _next_finished(client, running, timeout):
                    place = running.pop(future)
                    try:
                        outcomes[place] = loads(future.result())
                        bar.update()
                    except KilledWorker as error:
                        raise lost_too_often(place, error) from error
                    except MemberLostError as error:
                        losses[place] += 1
                        if losses[place] > lost_workers:
                            raise lost_too_often(place, error) from error
                        running[submit(place)] = place
    except CancelledError as error:  # Dask cancels all futures when the connection closes
        raise SchedulerError(
            f"lost the connection to the scheduler at {address}. Finished members are kept: "
            "start the scheduler and its workers again, then the same command."
        ) from error
    finally:
        client.cancel(list(running))
    for place in range(len(members)):
        if (error := outcomes[place][1]) is not None:
            raise error
    return [outcomes[place][0] for place in range(len(members))]


def _next_finished(client: Client, running: dict[Future, int], timeout: float) -> set[Future]:
    """Wait until some of the members have a result or an error.

    Raises:
        SchedulerError: no worker, or no answer of the scheduler, for `timeout` seconds.
    """
    from distributed import wait

    last_worker_seen = time.monotonic()
    while True:
        with contextlib.suppress(TimeoutError):
            return wait(list(running), timeout=_POLL_SECONDS, return_when="FIRST_COMPLETED").done
        if _has_workers(client, timeout):
            last_worker_seen = time.monotonic()
        elif time.monotonic() - last_worker_seen > timeout:
            raise SchedulerError(
                f"all workers died, and no new one connected within {timeout:g} s: "
                f"{len(running)} members are unfinished. Look at the workers' logs, start "
                "workers again and then run the same command. Finished members are kept."
            )


def _has_workers(client: Client, timeout: float) -> bool:
    try:
        identity = client.sync(client.scheduler.identity, n_workers=-1, callback_timeout=timeout)
    except TimeoutError as error:
        raise SchedulerError(
            f"the scheduler has not answered for {timeout:g} s. Finished members are kept: look at "
            "its log and its machine, then run the same command."
        ) from error
    except OSError:  # a closed connection, which the futures report
        return False
    return bool(identity["workers"])


def _set_allowed_failures(count: int, dask_scheduler: Any = None) -> None:
    dask_scheduler.allowed_failures = count
