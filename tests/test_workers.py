"""Worker processes: results come back, a crash costs one attempt, nothing is left behind."""

import errno
import multiprocessing
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from workers import TaskFailed, Workers


def add_to_shared(shared, x):
    return shared.sum().item() + x, os.getpid()


def write_to_shared(shared, value):
    shared[0] = value


def die_once(shared, marker):
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def die(shared):
    os.kill(os.getpid(), signal.SIGKILL)


def fail(shared):
    raise ValueError("no such child")


def run_out_of_memory(shared):
    raise RuntimeError("CUDA error: out of memory")


def sleep(shared):
    time.sleep(600)


def test_tasks_run_in_processes_that_share_one_copy_of_the_data(tmp_path):
    shared = torch.ones(1000).share_memory_()
    with Workers(2, shared) as workers:
        results = [future.result() for future in [workers.submit(workers.run, add_to_shared, x) for x in range(6)]]
        assert [value for value, _ in results] == [1000 + x for x in range(6)]
        assert os.getpid() not in {pid for _, pid in results}
        workers.submit(workers.run, write_to_shared, 5.0).result()
        assert shared[0] == 5  # the same memory, not a copy

        with pytest.raises(ValueError, match="no such child"):  # errors of the task come back as they are
            workers.submit(workers.run, fail).result()
        with pytest.raises(TaskFailed, match=r"^out of memory: CUDA error"):
            workers.submit(workers.run, run_out_of_memory).result()
        assert workers.submit(workers.run, die_once, str(tmp_path / "marker")).result() == "alive"
        with pytest.raises(TaskFailed, match="died 3 times"):
            workers.submit(workers.run, die).result()
        workers.timeout = 0.5
        with pytest.raises(TaskFailed, match=r"longer than 0\.5 seconds"):
            workers.submit(workers.run, sleep).result()
        workers.timeout = None
        assert workers.submit(workers.run, add_to_shared, 0).result()[0] == 1004  # and the slot goes on
    assert multiprocessing.active_children() == []


class SlowDevice:
    """Becomes a device in the worker process, and only after a while: like the first use of a GPU."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return start_device, (self.marker,)


def start_device(marker):
    time.sleep(4)
    Path(marker).touch()
    return "cpu"


def exists(shared, marker):
    return Path(marker).exists()


def test_the_start_of_a_gpu_is_not_counted_as_time_of_a_task(tmp_path):
    marker = str(tmp_path / "started")
    with Workers(1, timeout=3, device=SlowDevice(marker)) as workers:
        assert workers.submit(workers.run, exists, marker).result()


def test_time_in_which_the_program_is_stopped_does_not_count():
    """It counts waits of a second: one may last a night in which the machine sleeps."""

    class Pipe:
        def __init__(self, waits):
            self.waits, self.seconds = waits, []

        def poll(self, seconds):
            self.seconds.append(seconds)
            return len(self.seconds) > self.waits

    workers = Workers(1, timeout=2.5)
    workers._wait(pipe := Pipe(waits=2))
    assert pipe.seconds == [2.5 / 3] * 3
    with pytest.raises(TaskFailed, match=r"longer than 2\.5 seconds"):
        workers._wait(Pipe(waits=3))


@pytest.mark.slow
def test_a_stopped_program_does_not_use_up_the_time_of_a_task(tmp_path):
    program = """
from test_workers import Workers, nap
with Workers(1, timeout=3) as workers:
    print(workers.submit(workers.run, nap, "file").result())
"""
    path = os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parent.parent)))
    options = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": path}, "start_new_session": True, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, **options) as process:
        while not (tmp_path / "file").exists():
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(4)
        os.killpg(process.pid, signal.SIGCONT)
        assert process.communicate(timeout=600)[0] == "awake\n" and process.returncode == 0


def nap(shared, marker):
    Path(marker).touch()
    time.sleep(1.5)
    return "awake"


@pytest.mark.parametrize("problem", [OSError(errno.EAGAIN, "Resource temporarily unavailable"), None])
def test_processes_that_cannot_be_started_are_no_failed_task(monkeypatch, problem):
    """No more processes are allowed, or each dies before it is ready."""
    monkeypatch.setattr(Workers, "_start", lambda workers: (_ for _ in ()).throw(problem or EOFError))
    with Workers(1) as workers, pytest.raises(OSError) as error:
        workers.submit(workers.run, add_to_shared, 0).result()
    assert error.value is problem if problem else "no worker process can be started" in str(error.value)


def test_leaving_kills_what_is_running():
    started = time.monotonic()
    with Workers(1) as workers:
        workers.submit(workers.run, sleep)
        waiting = workers.submit(workers.run, sleep)
        while not multiprocessing.active_children():
            time.sleep(0.05)
    assert waiting.cancelled() and multiprocessing.active_children() == []
    assert time.monotonic() - started < 60  # not 600: the sleeper was not waited for


def faults_of_large_blocks(_: object) -> int:
    """Pages of memory that twenty blocks of 40 MB, each freed before the next, make a process ask for."""
    torch.ones(10_000_000)  # the heap grows to what one block needs
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_process_keeps_the_memory_that_is_freed():
    with Workers(1) as workers:
        assert workers.submit(workers.run, faults_of_large_blocks).result() < 5 * 40_000_000 / 4096  # as five new ones
