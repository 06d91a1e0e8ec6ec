"""Do tasks on Dask: processes of this machine, or the workers of a scheduler that the user names; or right here.

A bounded number of tasks is in flight, so that the scheduler's memory does not grow with the set.
"""

from __future__ import annotations

import math
import operator
import os
import pickle
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from . import __version__, alone, image
from .disk import aside
from .errors import StageError
from .hand import Limits, works_for
from .run import explained

T = TypeVar("T")
R = TypeVar("R")
IN_FLIGHT = 2  # trips a worker: one in hand, one waiting
TRIP_S = 0.1  # a task costs Dask 6 ms of three processes: quick ones go together, as many as a worker does in this time
MOST_A_TRIP = 16
MOST_DEATHS = 3  # that Dask may report of one task before we give up; it has tried several times each
WAIT_S = 5.0  # between two looks at the cluster while no task ends
LOST_S = 20.0  # without a scheduler
CONNECT_S = 15.0
ANSWER_S = 10.0  # to a question
SAY_S = 30.0  # between two lines that say that we wait
START = "Start it again, then run the same command: it goes on where it was"
SHARE = 0.8  # of the machine's memory, where no cap is given
LEAST_BYTES = 512_000_000  # of a worker: the libraries have 300 MB, staged tiles 64 MB, the rest is for pixels
CACHE_SHARE = 20  # GDAL's block cache has one part in so many of a worker's memory
ADVICE = "put the call under `if __name__ == '__main__':`, or pass workers=0"


@dataclass(frozen=True)
class Guarded:
    """A task as it goes to a worker, with what must be so there."""

    task: Callable[[Any], Any]
    limits: Limits
    token: Path | None = None  # a folder below WORK/tmp
    versions: tuple[str, ...] = ()

    def __call__(self, items: Sequence[Any]) -> tuple[list[Any], float]:
        """What comes of the first items, one at least and what TRIP_S leaves time for; and the seconds it took."""
        began = time.monotonic()
        has_bytes = self.check()
        works_for(self.token)
        limits = self.limits if self.limits.memory_bytes else replace(self.limits, memory_bytes=has_bytes)
        results = []
        for item in items:
            results.append(alone.safely(self.task, limits, item) if hasattr(item, "only") else self.task(item))
            if time.monotonic() - began > TRIP_S:
                break
        return results, time.monotonic() - began

    def check(self) -> int:
        """Memory of this worker; StageError where it would make other bytes, or does not see the folder of parts."""
        from distributed import get_worker

        where = os.uname().nodename
        if self.versions != versions():
            here, there = (set(a) - set(b) for a, b in ((versions(), self.versions), (self.versions, versions())))
            has, needs = (", ".join(sorted(which)) for which in (here, there))
            raise StageError(f"the worker on {where} has {has}, this build {needs}: install the same on all machines")
        if self.token is not None and not self.token.exists():
            raise StageError(
                f"the worker on {where} does not see {self.token.parents[1]}: --work must be on a disk that all share"
            )
        worker = get_worker()
        if worker.state.nthreads != 1:
            raise StageError(f"the worker on {where} has {worker.state.nthreads} threads: start it with --nthreads 1")
        has_bytes = int(worker.memory_manager.memory_limit or 0)
        if 0 < has_bytes < LEAST_BYTES:
            has = f"{has_bytes / 1e6:,.0f} MB"
            raise StageError(
                f"the worker on {where} may have {has}: give it --memory-limit {LEAST_BYTES // 10**6}MB or more"
            )
        if has_bytes:
            os.environ.setdefault("GDAL_CACHEMAX", str(max(has_bytes // CACHE_SHARE // 1_000_000, 1)))
        return has_bytes


def versions() -> tuple[str, ...]:
    """What decides about the bytes of a build, but for its recipe and its sources."""
    return (f"datakit {__version__}", *(f"{name} {version}" for name, version in image.versions().items()))


@dataclass
class Engine:
    """Does tasks, in any order; use it as a context.

    workers: processes of this machine; 0: this process. scheduler: address of a Dask scheduler, whose workers are
    used instead. memory_bytes: for all workers of this machine together. work: the folder of parts.
    The cluster starts with the first task, so that a build that has nothing left to do starts none.
    """

    workers: int
    scheduler: str = ""
    memory_bytes: int = 0
    work: Path | None = None
    limits: Limits = Limits()
    say: Callable[[str], None] = lambda line: None
    _client: Any = field(default=None, init=False)
    _token: Path | None = field(default=None, init=False)
    _lasting: ExitStack = field(default_factory=ExitStack, init=False)

    def __post_init__(self) -> None:
        if self.memory_bytes and not self.scheduler and self.share_bytes < LEAST_BYTES:
            given, most = f"{self.memory_bytes / 1e6:,.0f} MB", max(self.memory_bytes // LEAST_BYTES, 1)
            raise StageError(
                f"{given} for {max(self.workers, 1)} workers: each needs {LEAST_BYTES / 1e6:,.0f} MB. "
                f"Give more --memory, or --workers {most}"
            )

    @property
    def share_bytes(self) -> int:
        """Memory of a worker."""
        return self.memory_bytes // max(self.workers, 1)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self._lasting.close()
        if self._client is not None:
            cluster = self._client.cluster
            self._client.close(timeout=WAIT_S)
            if cluster is not None:
                cluster.close()

    def map(self, task: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """task(item) of each item, in the order they end."""
        with explained():
            if self.workers == 0 and not self.scheduler:
                limits = replace(self.limits, memory_bytes=self.memory_bytes or machine_bytes())
                for item in items:
                    yield alone.safely(task, limits, item, ours=False) if hasattr(item, "only") else task(item)
                return
            waiting = iter(items)
            first = list(islice(waiting, 1))
            if first:
                yield from self._spread(task, first, waiting)

    def _spread(self, task: Callable[[Any], Any], first: list[Any], waiting: Iterator[Any]) -> Iterator[Any]:
        """Hand tasks out, as many at a time as the workers can have."""
        from distributed.comm import CommClosedError

        client = self._start()
        flight = Flight(client, self._guarded(task))
        room = self._room()
        looked = time.monotonic()
        try:
            flight.send(first)
            while True:
                while len(flight.trips) < room and (items := list(islice(waiting, flight.size))):
                    flight.send(items)
                if not flight.trips:
                    return
                yield from flight.land(self._look)
                if self.scheduler and time.monotonic() - looked > WAIT_S:  # workers come and go
                    room, looked = self._room(), time.monotonic()
        except (CancelledError, CommClosedError) as exc:
            raise StageError(self._lost()) from exc
        finally:
            flight.cancel()

    def _guarded(self, task: Callable[[Any], Any]) -> Guarded:
        if self._token is None and self.work is not None:
            self._token = self._lasting.enter_context(aside(self.work))
        return Guarded(task, self.limits, self._token, versions())

    def _room(self) -> int:
        count = len(workers_of(self._client)) if self.scheduler else self.workers
        return IN_FLIGHT * max(count, 1)

    def _look(self) -> None:
        """Nothing has ended for a while: is anybody there?"""
        since = time.monotonic()
        while self._client.status not in ("running", "newly-created"):
            if time.monotonic() - since > LOST_S:
                raise StageError(self._lost())
            time.sleep(0.1)
        if self.scheduler and not workers_of(self._client):
            self.say(f"no worker is left at {self.scheduler}: waiting for one to join")

    def _lost(self) -> str:
        where = self.scheduler or "of this machine"
        return f"the Dask scheduler {where} is gone. {START}"

    def _start(self) -> Any:
        if self._client is None:
            self._client = join(self.scheduler, self.say) if self.scheduler else self._local()
        return self._client

    def _local(self) -> Any:
        """A cluster of processes of this machine, as many as have memory enough."""
        import dask
        from distributed import Client, LocalCluster

        if not self.memory_bytes:
            self.memory_bytes = machine_bytes()
            self.workers = max(min(self.workers, self.memory_bytes // LEAST_BYTES), 1)

        settings = {
            "distributed.worker.multiprocessing-method": "spawn",  # LibRaw and GDAL deadlock or race under fork
            "distributed.worker.memory.target": False,  # results are small: there is nothing to spill
            "distributed.worker.memory.spill": False,
            "distributed.worker.memory.pause": False,
            "distributed.scheduler.worker-saturation": 1.0,  # else a task that only waited on a dead worker is blamed
            "distributed.nanny.environ": {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        }
        with dask.config.set(settings):
            try:
                cluster = LocalCluster(
                    n_workers=self.workers,
                    threads_per_worker=1,
                    dashboard_address="127.0.0.1:0",  # any free port: another cluster may have the usual one
                    memory_limit=self.share_bytes,
                    silence_logs=50,
                )
            except RuntimeError as exc:  # a new process runs the caller's script again, down to this call
                raise StageError(f"the workers did not start: in a script, {ADVICE} ({exc})") from exc
        return Client(cluster)


@dataclass(frozen=True)
class Packed:
    """Tasks that are done where they are unpickled: all that Dask sees are bytes and a function of Python's own.

    A function of ours cannot be unpacked where datakit is not installed: that ends the connection of a worker, which
    looks as if it had died.
    """

    task: Guarded
    items: list[Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return operator.call, (self.task, self.items)


class Flight:
    """Tasks that are with the workers, several a trip where they are quick."""

    def __init__(self, client: Any, task: Guarded) -> None:
        self.client, self.task = client, task
        self.trips: dict[str, tuple[Any, list[Any], int]] = {}  # future, items and deaths so far, by key
        self.ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.size = 1  # items that the next trip should have

    def send(self, items: list[Any], deaths: int = 0) -> None:
        future = self.client.submit(pickle.loads, pickle.dumps(Packed(self.task, items)), pure=False)
        self.trips[future.key] = future, items, deaths
        future.add_done_callback(self.ended.put)

    def land(self, look: Callable[[], None]) -> Iterator[Any]:
        """The results of one trip that has ended; none if its workers died. What it did not do is sent again."""
        from distributed.scheduler import KilledWorker

        while True:
            try:
                future = self.ended.get(timeout=WAIT_S)
                break
            except queue.Empty:
                look()
        _, items, deaths = self.trips.pop(future.key)
        try:
            results, took_s = fetched(future, look)
        except RuntimeError as exc:
            if "deserialization" not in str(exc):
                raise
            raise StageError("the Dask scheduler cannot read our tasks: install the same distributed there") from exc
        except ImportError as exc:
            raise StageError(
                f"the worker at {lacking(self.client)} cannot do our tasks ({exc}): install there what is installed "
                "here, in the environment that starts it"
            ) from exc
        except KilledWorker as exc:
            if deaths == MOST_DEATHS:
                what = getattr(items[0], "path", type(items[0]).__name__)
                raise StageError(
                    f"workers died again and again on {what}: too little memory? Give --memory, or fewer --workers"
                ) from exc
            self.send(items, deaths + 1)
            return
        if rest := items[len(results) :]:
            self.send(rest)
        self.size = min(max(int(len(results) * TRIP_S / max(took_s, 1e-6)), 1), 2 * len(results), MOST_A_TRIP)
        yield from results

    def cancel(self) -> None:
        """Give up what is still with the workers, without waiting for anybody."""
        for future, _, _ in self.trips.values():
            future.release()
        self.trips.clear()


def fetched(future: Any, look: Callable[[], None]) -> Any:
    """The result of a task that has ended. The scheduler fetches it, and may fall silent before it does."""
    while True:
        try:
            return future.result(timeout=WAIT_S)
        except TimeoutError:
            if future.status == "error":  # it is the task's own
                raise
            look()


def join(scheduler: str, say: Callable[[str], None]) -> Any:
    """A client of a scheduler that has a worker at least; waits for the first one to join."""
    import logging

    from distributed import Client

    for name in ("distributed.client", "distributed.core", "distributed.comm"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what goes wrong is said by our own errors
    said = -math.inf
    try:
        client = Client(scheduler, timeout=CONNECT_S)
        while client.status == "running":
            if workers_of(client):
                return client
            if time.monotonic() - said > SAY_S:
                say(f"no worker has joined {scheduler} yet: waiting for one")
                said = time.monotonic()
            time.sleep(0.2)
        why = "it has gone"
    except (OSError, ValueError, CancelledError) as exc:  # distributed's own errors are OSErrors
        why = str(exc).strip().partition("\n")[0] or type(exc).__name__
    raise StageError(f"{scheduler}: no Dask scheduler answers there: {why}")


def workers_of(client: Any) -> dict[str, int]:
    """Threads by worker; StageError where the scheduler does not say."""
    try:
        found: dict[str, int] = client.sync(client.scheduler.ncores, callback_timeout=ANSWER_S)
    except (OSError, TimeoutError, CancelledError) as exc:
        raise StageError(f"the Dask scheduler does not answer. {START} ({type(exc).__name__})") from exc
    return found


def lacking(client: Any) -> str:
    """The workers that have no datakit, as far as they can be asked."""
    try:
        told = client.sync(client._run, find_spec, "datakit", on_error="return", callback_timeout=ANSWER_S)
    except (OSError, TimeoutError, CancelledError):
        return "?"
    return ", ".join(sorted(worker for worker, spec in told.items() if spec is None)) or "?"


def machine_bytes() -> int:
    """What workers may have of the memory of this machine, or of the container that we are in."""
    from distributed.system import MEMORY_LIMIT

    return int(MEMORY_LIMIT * SHARE)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))
