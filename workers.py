"""Run functions in worker processes, one process per slot: a crash costs one attempt of one task, never the pool.

with Workers(num_workers=2, shared=data) as workers:
    future = workers.submit(job)      # `job` runs in a thread here and calls
    workers.run(function, *args)      # ... function(data, *args) in that thread's own process

`Cluster` does the same on many machines with Ray.
"""

import contextlib
import ctypes
import math
import multiprocessing
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.pool import ExceptionWithTraceback
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch.multiprocessing  # tensors in `shared` reach the processes as shared memory, not as copies

# PyTorch's errors of the CPU's allocator, CUDA's, cuBLAS and cuDNN have one of these texts; no class is theirs alone.
OUT_OF_MEMORY = ("out of memory", "allocate memory", "ALLOC_FAILED", "find a valid cuDNN", "find an engine")
ATTEMPTS = 3  # a task whose process dies so often is given up
DIED = f"its worker process died {ATTEMPTS} times, perhaps for lack of memory"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt, from glibc's malloc.h
MAX_PENDING = 10_000  # tasks on a cluster: each waits in a thread here, which is started when it is needed


class TaskFailed(RuntimeError):
    """A task whose process died in every attempt, that took too long, or for which there was not enough memory."""


class Workers(ThreadPoolExecutor):
    """`num_workers` threads, each with a process of its own, started when it is first needed.

    `shared` is sent to every process once, at its start; functions get it as their first argument.
    """

    def __init__(self, num_workers: int, shared: Any = None, timeout: float | None = None, device: str = "cpu") -> None:
        self.num_workers, self.shared, self.device = num_workers, shared, device
        self.timeout = timeout  # seconds for one task, not counting the start of its process
        self.start_lock = threading.Lock()  # no process is started once `closing` is set
        self.closing = False
        self.slot = threading.local()  # its `worker`: a thread's process and the pipe to it
        # A blocked SIGINT is inherited by the processes: Ctrl-C is the main process's business alone. The tracker must
        # be there before, because the thread that starts it has SIGINT unblocked by that.
        resource_tracker.ensure_running()
        blocked = (signal.SIG_BLOCK, {signal.SIGINT})
        super().__init__(num_workers, initializer=signal.pthread_sigmask, initargs=blocked)

    def run(self, function: Callable, *args: Any) -> Any:
        """Return `function(shared, *args)` from this thread's process; TaskFailed if that gives none."""
        for _ in range(ATTEMPTS):
            process, pipe = self._process()
            try:
                pipe.send((function, args))
                self._wait(pipe)
                succeeded, result = pipe.recv()
            except TaskFailed:
                process.kill()
                self.slot.worker = None
                raise
            except (EOFError, ConnectionError):  # the process died
                self.slot.worker = None
            else:
                if succeeded:
                    return result
                raise result
        raise TaskFailed(DIED)

    def _wait(self, pipe: Connection) -> None:
        """Wait for a task's answer; TaskFailed if it takes too long.

        Short waits are counted, not the time that has passed, in which the program may have been stopped.
        """
        if self.timeout is None:
            return
        waits = math.ceil(self.timeout)
        if not any(pipe.poll(self.timeout / waits) for _ in range(waits)):
            raise TaskFailed(f"took longer than {self.timeout:g} seconds")

    def _process(self) -> tuple[BaseProcess, Connection]:
        """This thread's process and the pipe to it, started if there is none; OSError if none can be started."""
        if getattr(self.slot, "worker", None) is not None:
            return self.slot.worker
        for _ in range(ATTEMPTS):
            with contextlib.suppress(EOFError, ConnectionError):  # it died before it was ready
                self.slot.worker = self._start()
                return self.slot.worker
        raise ChildProcessError("no worker process can be started, perhaps for lack of memory: try fewer --workers")

    def _start(self) -> tuple[BaseProcess, Connection]:
        """A new process that waits for tasks, and the pipe to it."""
        with self.start_lock:
            if self.closing:
                raise CancelledError
            spawn = multiprocessing.get_context("spawn")
            pipe, other_end = spawn.Pipe()
            with other_end:  # it belongs to the process alone: so the pipe ends with it
                process = spawn.Process(target=_serve, args=(other_end, self.shared, self.device), daemon=True)
                process.start()
        if problem := pipe.recv():
            raise problem
        return process, pipe

    def __exit__(self, *_: Any) -> None:
        """Drop what is waiting, kill what is running, leave no process behind."""
        with self.start_lock:
            self.closing = True
            processes = multiprocessing.active_children()
        self.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
        self.shutdown(wait=True)
        for process in processes:
            process.join()


class Cluster(ThreadPoolExecutor):
    """The same on a Ray cluster: a task runs where there is room, and again elsewhere if its process or node dies.

    `address` is "local" (a new cluster of `num_workers` CPUs), "auto" or "host:port". Each task takes a CPU and
    `gpus` of a GPU; each node gets `shared` once. ConnectionError without a cluster, or room.
    """

    def __init__(self, address: str, num_workers: int, shared: Any, timeout: float | None, gpus: float) -> None:
        os.environ.setdefault("RAY_ENABLE_ZERO_COPY_TORCH_TENSORS", "1")  # the processes of a node share `shared`
        import ray  # here, because it is needed with --cluster only

        # What a task needs is the code beside this file: the modules, not data, runs or results.
        code = {"working_dir": str(Path(__file__).parent), "excludes": ["/*/", "*.md"]}
        new = {"num_cpus": num_workers, "include_dashboard": False} if address == "local" else {}
        terminate = signal.getsignal(signal.SIGTERM)
        try:
            if address not in ("local", "auto"):  # Ray itself would try for minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host, port), timeout=10).close()
            ray.init(address, runtime_env=code, logging_level="error", log_to_driver=False, **new)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConnectionError(f"no Ray cluster answers at {address} ({reason})") from None
        signal.signal(signal.SIGTERM, terminate)  # Ray has put its own in place
        self.ray, self.timeout, self.closing = ray, timeout, False
        self.device = "cuda" if gpus else "cpu"
        # Without max_calls each task on a GPU has a new process; with it a process keeps the GPU of its first task.
        self.task = ray.remote(num_cpus=1, num_gpus=gpus, max_calls=0, max_retries=ATTEMPTS - 1)(_call_on_node)
        with warnings.catch_warnings(action="ignore"):  # that shared tensors must not be written to: no child does
            self.shared = [ray.put(shared)]  # a list, in which it travels as a reference
        cpus, all_gpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("CPU", "GPU"))
        self.num_workers = min(cpus, all_gpus * int(1 / gpus)) if gpus else cpus
        if not self.num_workers:
            ray.shutdown()
            raise ConnectionError(f"the Ray cluster has {cpus} CPUs and {all_gpus} GPUs: no room for a child")
        super().__init__(MAX_PENDING)

    def run(self, function: Callable, *args: Any) -> Any:
        """Return `function(shared, *args)` from some process of the cluster; TaskFailed as in `Workers.run`."""
        task, exceptions = self.task.remote(self.shared, self.timeout, self.device, function, args), self.ray.exceptions
        try:
            while not self.closing:
                with contextlib.suppress(exceptions.GetTimeoutError):
                    return self.ray.get(task, timeout=1)
            raise CancelledError
        except (exceptions.WorkerCrashedError, exceptions.NodeDiedError):
            raise TaskFailed(DIED) from None
        except exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
        if not isinstance(cause, exceptions.RayError):
            raise cause  # what the function raised
        raise ConnectionError(f"the Ray cluster failed: {' '.join(str(cause).split())[:500]}")

    def __exit__(self, *_: Any) -> None:
        """Drop what is waiting, end what is running; a cluster of one's own ends too."""
        self.closing = True
        self.shutdown(wait=True, cancel_futures=True)  # a second: a thread that waits while Ray ends waits for ever
        signal.alarm(0)  # a signal's: Ray's processes would outlive a program that is killed here
        self.ray.shutdown()


_shared: Any = None  # what all tasks of a worker process share


def _call_on_node(shared: list, timeout: float | None, device: str, function: Callable, args: tuple) -> Any:
    """Runs in a process of a Ray cluster, which keeps `shared` for its next task."""
    global _shared
    if _shared is None:
        import ray

        _shared = ray.get(shared[0])

    def expire(*_: Any) -> None:
        raise TaskFailed(f"took longer than {timeout:g} seconds")

    _prepare_process(device)
    signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, timeout or 0)
    try:
        return _call(function, args)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _serve(pipe: Connection, shared: Any, device: str) -> None:
    """Runs in a new worker process, which ends with its parent: say when it is ready, then answer tasks."""
    global _shared
    _shared = shared

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)  # sys.exit would end this thread alone

    try:
        threading.Thread(target=end_with_parent, daemon=True).start()
    except RuntimeError as error:  # no more threads may be started
        pipe.send(error)
        return
    _prepare_process(device)
    pipe.send(None)
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone
        while True:
            pipe.send(_answer(*pipe.recv()))


def _answer(function: Callable, args: tuple) -> tuple[bool, Any]:
    """Whether a task succeeded, and its result or what it raised."""
    try:
        return True, _call(function, args)
    except Exception as error:
        return False, ExceptionWithTraceback(error, error.__traceback__)


def _prepare_process(device: str) -> None:
    """Prepare a new process for its tasks, before their time is counted."""
    keep_freed_memory()
    with contextlib.suppress(RuntimeError, AssertionError):  # the first task meets the same error, and reports it
        torch.zeros(1, device=device)  # makes the CUDA context, which takes seconds


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what a training step frees for the next step, which Linux would give new pages otherwise.

    Networks with large feature maps are trained up to 1.6 times faster so. Another C library stays as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # large blocks come from the heap as well
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # bytes at the heap's end that are kept


def _call(function: Callable, args: tuple) -> Any:
    """Runs in a worker process: a task; if its memory runs out, all of it is given back for the next one."""
    try:
        return function(_shared, *args)
    except (RuntimeError, MemoryError) as error:
        reason = lacking_memory(error)
        if not reason and lacking_memory(error.__context__):
            # Memory ran out while a CUDA graph was recorded, and PyTorch does not clean up after that. So this process
            # ends, and the task is tried again in a new one.
            os._exit(1)
        if not reason:
            raise
    torch.cuda.empty_cache()
    # This stands outside of the `except`, where the new error would hold the old one's frames, and so its tensors.
    raise TaskFailed(f"out of memory: {reason}")


def lacking_memory(error: BaseException | None) -> str | None:
    """The first line of an error that says so."""
    lacking = isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)
    return (str(error).splitlines() or [type(error).__name__])[0] if lacking else None
