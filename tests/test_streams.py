"""Whoever reads the output may go away, and signals may come, at any moment: nothing hangs and nothing is lost."""

import errno
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_safety import REAL, ROOT, STAND_IN, alive, nothing_goes_on_after_a_test, result_of, started  # noqa: F401

from utils import Stream

CHILDREN = ("--num_children", "30", "--workers", "2")  # and three finalists
FINAL = ("--mode", "evaluate", "--architecture", "k3f8p0", "--train_images", "500", "--num_seeds", "2")


def start(run_dir: Path, *flags: str, program: Path = STAND_IN, **options) -> subprocess.Popen:
    """The program in a session of its own; its output is read through pipes unless the options say otherwise."""
    command = [sys.executable, str(program), "--data_dir", str(ROOT / "data"), "--run_dir", str(run_dir), *flags]
    usual = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    process = subprocess.Popen(command, **usual | options)
    started.append(process)
    return process


def num_rows(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "start": lambda run: True,
    "children": lambda run: num_rows(run / "children.jsonl") >= 5,
    "finalists": lambda run: num_rows(run / "finalists.jsonl") >= 1,
    "report": lambda run: num_rows(run / "finalists.jsonl") == 3,
}


def wait_until(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    while process.poll() is None and not condition():
        time.sleep(0.005)


# --- streams ------------------------------------------------------------------------------------------------------


def test_a_stream_outlives_its_reader():
    reader, writer = os.pipe()
    with Stream(writer, "w") as stream:
        assert stream.write(b"read") == 4 and os.read(reader, 10) == b"read"
        os.close(reader)
        assert [stream.write(b"unread") for _ in range(2)] == [6, 6]


def test_a_stream_outlives_its_terminal():
    terminal, writer = pty.openpty()
    with Stream(writer, "w") as stream:
        os.close(terminal)
        assert [stream.write(b"unread") for _ in range(2)] == [6, 6]


def test_a_stream_waits_for_its_reader_even_if_it_does_not_block():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with Stream(writer, "w") as stream, open(reader, "rb") as pipe:
        written = stream.write(bytes(10_000_000))  # as much as there is room for
        reading = threading.Thread(target=lambda: pipe.read(written))
        reading.start()
        assert stream.write(b"more") == 4
        reading.join()


def test_a_report_on_a_full_disk_is_named_once_and_progress_is_dropped():
    with Stream(os.open("/dev/full", os.O_WRONLY), "w") as stream:
        with pytest.raises(OSError) as error:
            stream.write(b"lost")
        assert error.value.errno == errno.ENOSPC and error.value.filename == "standard output"
        assert stream.write(b"dropped") == 7
    program = "import sys, utils; utils.outlive_readers(); print('progress', file=sys.stderr); print('report')"
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", program]
        result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=full, timeout=600)
    assert result.returncode == 0 and result.stdout == b"report\n"


# --- searches -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple:
    """What a search leaves that nobody disturbs, apart from the time it took."""
    run_dir = tmp_path_factory.mktemp("undisturbed")
    assert start(run_dir, *CHILDREN, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait(600) == 0
    return result_of(run_dir)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_line_of_progress_is_written_at_once(unbuffered):
    program = "import os, sys, utils; utils.outlive_readers(); print('progress', file=sys.stderr); os._exit(0)"
    variables = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, env=variables, timeout=600)
    assert result.stderr == b"progress\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment, streams",
    [(moment, ("stdout", "stderr")) for moment in MOMENTS] + [("children", ("stdout",)), ("children", ("stderr",))],
)
def test_a_search_whose_readers_go_away_ends_silently_with_the_same_result(tmp_path, undisturbed, moment, streams):
    search = start(tmp_path, *CHILDREN)
    wait_until(search, lambda: MOMENTS[moment](tmp_path))
    for name in streams:
        getattr(search, name).close()
    rest = [getattr(search, name).read() for name in ("stdout", "stderr") if name not in streams]
    assert search.wait(600) == 0 and not any(b"Exception" in text or b"Errno" in text for text in rest)
    assert result_of(tmp_path) == undisturbed and (tmp_path / "best.png").exists()


def test_a_search_whose_streams_are_closed_from_the_start_ends_silently(tmp_path):
    """And in the environment of a notebook, whose way to show pictures is not installed here."""
    command = f"{sys.executable} {STAND_IN} --num_children 3 --run_dir {tmp_path} --data_dir {ROOT / 'data'}"
    code = f"exec {command} 0<&- >&- 2>&-"
    notebook = os.environ | {"MPLBACKEND": "not_installed"}
    assert subprocess.run(["sh", "-c", code], env=notebook, timeout=600).returncode == 0
    assert num_rows(tmp_path / "children.jsonl") == 3 and (tmp_path / "best.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("hang_up", [False, True])
@pytest.mark.parametrize("moment", ["children", "finalists"])
def test_a_terminal_goes_away(tmp_path, undisturbed, moment, hang_up):
    """With SIGHUP, as the kernel sends it to the session of the terminal, the search ends; without, it goes on."""
    terminal, end = pty.openpty()
    slow = os.environ | {"STAND_IN_SECONDS": "0.1"}
    search = start(tmp_path, *CHILDREN, stdin=end, stdout=end, stderr=end, env=slow)
    os.close(end)
    threading.Thread(target=lambda: read_until_closed(terminal), daemon=True).start()
    wait_until(search, lambda: MOMENTS[moment](tmp_path))
    if hang_up:
        os.killpg(search.pid, signal.SIGHUP)
    os.close(terminal)
    code = search.wait(600)
    ends = (129, -signal.SIGHUP, -signal.SIGALRM)  # the second while it is imported, the third on a busy machine
    assert code in (ends if hang_up else (0,))
    if hang_up:
        assert start(tmp_path, *CHILDREN, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait(600) == 0
    assert result_of(tmp_path) == undisturbed


def read_until_closed(terminal: int) -> None:
    try:
        while os.read(terminal, 1000):
            pass
    except OSError:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["children", "finalists"])
def test_a_signal_ends_a_search_that_nobody_reads(tmp_path, undisturbed, moment, number):
    slow = os.environ | {"STAND_IN_SECONDS": "0.1"}
    search = start(tmp_path, *CHILDREN, env=slow)
    for pipe in (search.stdout, search.stderr):
        pipe.close()
    wait_until(search, lambda: MOMENTS[moment](tmp_path))
    search.send_signal(number)
    assert search.wait(600) in (128 + number, -signal.SIGALRM)  # of the system, on a busy machine
    assert start(tmp_path, *CHILDREN, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait(600) == 0
    assert result_of(tmp_path) == undisturbed


@pytest.mark.slow
def test_a_signal_ends_a_search_whose_reader_does_not_read(tmp_path):
    """Its write waits for ever, also that of the last line: the system ends it then."""
    reader, end = os.pipe()
    os.set_blocking(end, False)
    while True:
        try:
            os.write(end, b"x" * 1000)
        except BlockingIOError:
            break
    os.set_blocking(end, True)
    search = start(tmp_path, *CHILDREN, stdout=end, stderr=end)
    wait_until(search, lambda: num_rows(tmp_path / "children.jsonl") >= 2)
    search.send_signal(signal.SIGTERM)
    assert search.wait(600) in (143, -signal.SIGALRM)
    os.close(reader)


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{"TQDM_DISABLE": "1"}, {"COLUMNS": "10", "LINES": "5"}])
def test_variables_of_the_terminal_stop_nothing(tmp_path, undisturbed, variables):
    for _ in range(2):
        search = start(tmp_path, *CHILDREN, env=os.environ | variables)
        output, errors = search.communicate(timeout=600)
        assert search.returncode == 0 and b"best architecture" in output
        assert bool(errors) != ("TQDM_DISABLE" in variables)
    assert result_of(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["start", "training", "report"])
def test_an_evaluation_whose_readers_go_away_ends_silently(tmp_path, moment):
    run = start(tmp_path, *FINAL, program=REAL)
    if moment == "training":
        run.stderr.read(100)  # of the bar
    elif moment == "report":
        wait_until(run, lambda: (tmp_path / "evaluation-k3f8p0.json").exists())
    for pipe in (run.stdout, run.stderr):
        pipe.close()
    assert run.wait(600) == 0 and (tmp_path / "confusion-k3f8p0.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_an_evaluation_that_nobody_reads(tmp_path, number):
    run = start(tmp_path, *FINAL, "--eval_epochs", "1000", program=REAL)
    run.stderr.read(100)
    for pipe in (run.stdout, run.stderr):
        pipe.close()
    run.send_signal(number)
    assert run.wait(600) in (128 + number, -signal.SIGALRM) and not list(tmp_path.rglob("*.json"))
