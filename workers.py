"""Run functions in worker processes, one process per slot: a crash costs one attempt of one task, never the pool.

with Workers(num_workers=2, shared=data) as workers:
    future = workers.submit(job)      # `job` runs in a thread here and calls
    workers.run(function, *args)      # ... function(data, *args) in that thread's own process
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import Any

import torch.multiprocessing  # noqa: F401  (tensors in `shared` reach the processes as shared memory, not as copies)

ATTEMPTS = 3  # before a task whose process dies every time is given up


class TaskFailed(RuntimeError):
    """A task whose process died in every attempt, or that took too long."""


class Workers:
    """`num_workers` threads, each with a process of its own, started when it is first needed.

    `shared` is handed to every process once, at its start; functions get it as their first argument.
    """

    def __init__(self, num_workers: int, shared: Any = None, timeout: float | None = None) -> None:
        self.shared = shared
        self.timeout = timeout  # seconds for one task, not counting the start of its process
        self.starting = threading.Lock()  # no process is started once `closing` is set
        self.closing = False
        self.slot = threading.local()
        # A blocked SIGINT is inherited by the processes: Ctrl-C is the main process's business alone. The tracker must
        # be there before, because the thread that starts it has SIGINT unblocked by that.
        resource_tracker.ensure_running()
        self.threads = ThreadPoolExecutor(
            num_workers, initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, {signal.SIGINT})
        )

    def submit(self, job: Callable, *args: Any) -> Future:
        """Run `job(*args)` in the next free slot's thread, first come, first served."""
        return self.threads.submit(job, *args)

    def run(self, function: Callable, *args: Any) -> Any:
        """Return `function(shared, *args)` from this thread's process.

        TaskFailed if the process dies in every attempt, or if the task takes too long.
        """
        for _ in range(ATTEMPTS):
            try:
                executor, pid = self._process()
                return executor.submit(_call, function, args).result(self.timeout)
            except BrokenProcessPool:
                self.slot.process = None
            except TimeoutError:
                self.slot.process = None
                os.kill(pid, signal.SIGKILL)
                raise TaskFailed(f"took longer than {self.timeout:g} seconds") from None
        raise TaskFailed(f"its worker process died {ATTEMPTS} times")

    def _process(self) -> tuple[ProcessPoolExecutor, int]:
        """This thread's executor of one process, started if there is none, and the process's number."""
        if getattr(self.slot, "process", None) is None:
            with self.starting:
                if self.closing:
                    raise CancelledError
                spawn = multiprocessing.get_context("spawn")
                executor = ProcessPoolExecutor(1, spawn, initializer=_start, initargs=(self.shared,))
                pid = executor.submit(os.getpid)
            self.slot.process = executor, pid.result()
        return self.slot.process

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: Any) -> None:
        """Drop what is waiting, kill what is running, leave no process behind."""
        with self.starting:
            self.closing = True
            processes = multiprocessing.active_children()
        self.threads.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
        self.threads.shutdown(wait=True)
        while any(process.is_alive() for process in processes):  # join() may return early: the executor reaps them too
            time.sleep(0.01)


_shared: Any = None  # in a worker process: what all its tasks share


def _start(shared: Any) -> None:
    global _shared
    _shared = shared
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(function: Callable, args: tuple) -> Any:
    return function(_shared, *args)
