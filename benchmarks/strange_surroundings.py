"""Strange surroundings: streams that close, signals, folders that move, for `python -m benchmarks.strange_inputs`."""

import json
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from benchmarks.strange_inputs import (
    ENDED,
    ROOT,
    TIME_LIMIT,
    Outcome,
    goes_on,
    noise,
    program,
    real,
    rows,
    strange,
    until,
    wait,
    write,
)

TWENTY = ("--num_children", "20", "--workers", "2")
WHOLE = r"best architecture[\s\S]*children +20 trained"
REPORT = r"best architecture[\s\S]*evaluate it with"

# --- streams ------------------------------------------------------------------------------------------------------


def cut_after(root: Path, count: int, streams: str) -> Outcome:
    """A search whose reader goes away after some bytes of `both` streams, or of one; then the same command again."""
    write(root / "set")
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    options = {
        "both": {"stdout": pipe, "stderr": subprocess.STDOUT},
        "stdout": {"stdout": pipe, "stderr": nothing},
        "stderr": {"stdout": nothing, "stderr": pipe},
    }[streams]
    with real(root, *TWENTY, **options) as process:
        stream = process.stderr if streams == "stderr" else process.stdout
        stream.read(count)
        stream.close()
        code = wait(process)
    return goes_on(root, code if code is None or code in ENDED else 1, *TWENTY)


@strange(0, WHOLE)
def reader_of_both(root: Path) -> Outcome:
    """stream: the reader of both goes away after 300 bytes"""
    return cut_after(root, 300, "both")


@strange(0, WHOLE)
def reader_of_both_at_once(root: Path) -> Outcome:
    """stream: the reader of both goes away at once"""
    return cut_after(root, 0, "both")


@strange(0, WHOLE)
def reader_of_errors(root: Path) -> Outcome:
    """stream: the reader of standard error goes away"""
    return cut_after(root, 100, "stderr")


@strange(0, WHOLE)
def reader_of_output(root: Path) -> Outcome:
    """stream: the reader of standard output goes away"""
    return cut_after(root, 20, "stdout")


@strange(0, WHOLE)
def tee_dies(root: Path) -> Outcome:
    """stream: a tee that is killed"""
    write(root / "set")
    tee = subprocess.Popen(["tee", "log"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=root)
    with real(root, *TWENTY, stdout=tee.stdin, stderr=subprocess.STDOUT) as process:
        tee.stdin.close()
        until(lambda: rows(root) > 3)
        tee.kill()
        tee.wait()
        code = wait(process)
    return goes_on(root, code, *TWENTY)


def in_a_shell(root: Path, command: str) -> Outcome:
    """A command line with `train` for the program; what it said, also into files called log."""
    train = f"python {ROOT / 'train.py'} --dataset set"
    shell = ["bash", "-o", "pipefail", "-c", command.replace("train", train)]
    try:
        ended = subprocess.run(shell, cwd=root, capture_output=True, text=True, timeout=2 * TIME_LIMIT)
    except subprocess.TimeoutExpired:
        return Outcome(None, "it did not end")
    logs = "".join(log.read_text() for log in root.glob("log*"))
    return Outcome(ended.returncode, ended.stdout + ended.stderr + logs)


SHORT = "--child_epochs 0.1 --num_children 4 --workers 1"


@strange(ENDED, r"2 classes")
def first_line_of_a_search(root: Path) -> Outcome:
    """stream: | head -1 after a search"""
    write(root / "set")
    return in_a_shell(root, f"train {SHORT} 2>log | head -1")


@strange(ENDED, r"2 classes[\s\S]*written")
def first_line_of_an_evaluation(root: Path) -> Outcome:
    """stream: | head -1 after an evaluation"""
    write(root / "set")
    said = program(root)
    again = in_a_shell(root, "train --mode evaluate --eval_epochs 0.1 --num_seeds 1 2>log | head -2")
    there = (root / "runs/set/evaluation.json").exists()
    return Outcome(again.code, said.text + again.text + ("\nwritten" if there else "\nevaluation.json is missing"))


@strange(0, r"best architecture")
def no_standard_error(root: Path) -> Outcome:
    """stream: 2>&-"""
    write(root / "set")
    return in_a_shell(root, f"train {SHORT} 2>&- >log")


@strange((0, 2), r"written")
def no_standard_output(root: Path) -> Outcome:
    """stream: >&-"""
    write(root / "set")
    ended = in_a_shell(root, f"train {SHORT} >&- 2>log")
    there = (root / "runs/set/best.json").exists()
    return Outcome(ended.code, ended.text + ("\nwritten" if there else "\nbest.json is missing"))


def with_environment(root: Path, **variables: str) -> Outcome:
    """A search, the same again and an evaluation with these variables set."""
    write(root / "set")
    setting = " ".join(f"{name}={value}" for name, value in variables.items())
    evaluate = "--mode evaluate --eval_epochs 0.1 --num_seeds 1"
    return in_a_shell(root, f"export {setting}; train {SHORT} && train {SHORT} && train {evaluate}")


@strange(0, r"best architecture[\s\S]*best architecture[\s\S]*recall")
def no_bars(root: Path) -> Outcome:
    """environment: TQDM_DISABLE=1"""
    return with_environment(root, TQDM_DISABLE="1")


@strange(0, r"best architecture[\s\S]*best architecture[\s\S]*recall")
def notebook_backend(root: Path) -> Outcome:
    """environment: MPLBACKEND as a notebook sets it"""
    return with_environment(root, MPLBACKEND="module://matplotlib_inline.backend_inline")


@strange(0, r"best architecture[\s\S]*best architecture[\s\S]*recall")
def narrow_terminal(root: Path) -> Outcome:
    """environment: COLUMNS=10"""
    return with_environment(root, COLUMNS="10")


# --- signals and time ---------------------------------------------------------------------------------------------


@strange(0, r"\(0 failed\)")
def stopped_for_a_while(root: Path) -> Outcome:
    """signal: stopped for longer than --child_timeout, then continued"""
    write(root / "set", 60)
    timeout = TIME_LIMIT / 8
    flags = ("--num_children", "3", "--workers", "1", "--child_timeout", str(timeout), "--child_epochs", "300")
    with real(root, *flags, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        until(lambda: rows(root))
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(timeout + 5)
        os.killpg(process.pid, signal.SIGCONT)
        code = wait(process)
        said = process.stdout.read() if code is not None else ""
    return Outcome(code, said)


def ended_by(root: Path, number: int) -> Outcome:
    """A search that gets a signal in its middle, and goes on."""
    write(root / "set")
    with real(root, *TWENTY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: rows(root) > 3)
        process.send_signal(number)
        code = wait(process, 5)
    return goes_on(root, code, *TWENTY)


@strange(0, WHOLE)
def interrupted(root: Path) -> Outcome:
    """signal: SIGINT in the middle"""
    return ended_by(root, signal.SIGINT)


@strange(0, WHOLE)
def terminated(root: Path) -> Outcome:
    """signal: SIGTERM in the middle"""
    return ended_by(root, signal.SIGTERM)


@strange(0, WHOLE)
def terminal_closed(root: Path) -> Outcome:
    """signal: SIGHUP in the middle"""
    return ended_by(root, signal.SIGHUP)


def time_changed(root: Path, change: Callable[[Path], object]) -> Outcome:
    write(root / "set")
    first = program(root, "--num_children", "2")
    change(root / "runs/set/time.json")
    return program(root, "--num_children", "3") if first.code == 0 else first


NO_NONSENSE = r"^(?![\s\S]*(\d{3}\.\d %|\d{3}\.\d%|-\d+ h|-\d+ min|-\d+ s))[\s\S]*time  "


@strange((0, 2), NO_NONSENSE)
def time_deleted(root: Path) -> Outcome:
    """time: time.json deleted before a search goes on"""
    return time_changed(root, Path.unlink)


@strange((0, 2), NO_NONSENSE.replace("time  ", "(time  |time.json)"))
def time_negative(root: Path) -> Outcome:
    """time: negative seconds in time.json"""
    return time_changed(root, lambda file: file.write_text('{"wall": -7000.0, "workers": 1.0, "main_cpu": 1.0}'))


# --- files that can't be written, or are not ours -----------------------------------------------------------------


def no_permission_for_pictures() -> None:
    from matplotlib.figure import Figure

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "search.png")

    Figure.savefig = refuse


@strange(1, REPORT)
def picture_that_cannot_be_written(root: Path) -> Outcome:
    """files: search.png can't be written"""
    write(root / "set")
    return program(root, before=no_permission_for_pictures)


@strange(1, r"top1 test accuracy[\s\S]*confusion\.png")
def confusion_that_cannot_be_written(root: Path) -> Outcome:
    """files: confusion.png can't be written"""
    write(root / "set")
    searched = program(root)
    flags = ("--mode", "evaluate", "--eval_epochs", "0.1", "--num_seeds", "1", "--workers", "1")
    return program(root, *flags, before=no_permission_for_pictures) if searched.code == 0 else searched


def full_disk() -> None:
    """No file may grow beyond so many bytes, fewer than the controller has; as a full disk, it is an error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))


@strange((1, 2), REPORT)
def disk_full(root: Path) -> Outcome:
    """files: the disk is full at the end"""
    for i in range(30):
        file = root / "set" / ("cat", "dog")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(i, (8, 8))).save(file)
    return program(root, before=full_disk)


def no_memory_for_pictures() -> None:
    import plots

    def refuse(*_: object) -> None:
        raise MemoryError("std::bad_alloc")

    plots.plot_search = plots.plot_confusions = refuse


@strange((0, 1, 2), REPORT)
def no_memory_at_the_end(root: Path) -> Outcome:
    """files: too little memory to draw"""
    write(root / "set")
    return program(root, before=no_memory_for_pictures)


@strange((0, 2), r"kept")
def other_peoples_files(root: Path) -> Outcome:
    """files: other people's events and search.png in --run_dir"""
    write(root / "set")
    folder, names = root / "mine", ("events.out.tfevents.1.mine", "search.png")
    folder.mkdir()
    for name in names:
        (folder / name).write_text("mine")
    ended = program(root, "--run_dir", "mine")
    lost = [name for name in names if not (folder / name).exists() or (folder / name).read_text() != "mine"]
    return Outcome(ended.code, ended.text + (f"\nlost: {', '.join(lost)}" if lost else "\nkept"))


# --- a folder that moves ------------------------------------------------------------------------------------------


@strange(2, r"exist|is not there|isn't there")
def no_such_folder(root: Path) -> Outcome:
    """moved: the folder isn't there"""
    return program(root, "--dataset", "pictures/of/mine")


@strange(2, r"exist|is not there|isn't there")
def moved_before_evaluation(root: Path) -> Outcome:
    """moved: the folder is gone when the search goes on"""
    write(root / "set")
    first = program(root)
    (root / "set").rename(root / "elsewhere")
    return program(root, "--num_children", "3") if first.code == 0 else first


@strange(0, r"best architecture")
def renamed(root: Path) -> Outcome:
    """moved: the folder is renamed, with the same pictures"""
    write(root / "set")
    first = program(root)
    (root / "set").rename(root / "renamed")
    again = ("--dataset", "renamed", "--run_dir", "runs/set", "--num_children", "3")
    return program(root, *again) if first.code == 0 else first


@strange(2, r"^(?=[\s\S]*(exist|is not there|isn't there|is gone))(?![\s\S]{5000})")
def moved_while_it_is_read(root: Path) -> Outcome:
    """moved: the folder goes while it is read"""
    write(root / "set", 100)
    return program(root, before=folder_goes_while_it_is_read)


def folder_goes_while_it_is_read() -> None:
    from PIL import Image

    really, opened = Image.open, []

    def open_and_lose(*args: object, **options: object) -> object:
        opened.append(args)
        if len(opened) == 50:
            shutil.move("set", "elsewhere")
        return really(*args, **options)

    Image.open = open_and_lose


# --- machines -----------------------------------------------------------------------------------------------------


def little_shared_memory() -> None:
    import torch

    def refuse(self: object) -> None:
        raise RuntimeError("unable to write to file </torch_1_2_0>: No space left on device (28)")

    torch.Tensor.share_memory_ = refuse
    import settings

    settings.Workers = lambda *_: None


@strange(2, r"shm")
def container_with_little_shared_memory(root: Path) -> Outcome:
    """machine: /dev/shm is too small"""
    write(root / "set")
    return program(root, before=little_shared_memory)


def no_more_threads() -> None:
    start, started = threading.Thread.start, []

    def refuse(self: threading.Thread) -> None:
        started.append(self)
        if len(started) > 2:
            raise RuntimeError("can't start new thread")
        start(self)

    threading.Thread.start = refuse


@strange((0, 2), r"thread|best architecture")
def no_threads(root: Path) -> Outcome:
    """machine: no more threads can be started"""
    write(root / "set")
    return program(root, before=no_more_threads)


def quota_of_two_cores() -> None:
    """As in a container with --cpus 2 on a machine of 64 cores."""
    read, is_file = Path.read_text, Path.is_file
    quota = "/sys/fs/cgroup/cpu.max"
    Path.read_text = lambda path, **how: "200000 100000\n" if str(path) == quota else read(path, **how)
    Path.is_file = lambda path: str(path) == quota or is_file(path)
    os.sched_getaffinity = lambda _: set(range(64))
    os.cpu_count = lambda: 64


@strange(0, r"usable cores 2\b")
def container_with_a_quota(root: Path) -> Outcome:
    """machine: a container's quota of two cores on 64"""
    write(root / "set")
    ended = program(root, before=quota_of_two_cores)
    config = root / "runs/set/config.json"
    cores = json.loads(config.read_text())["machine"]["cores"] if config.exists() else "unknown"
    return Outcome(ended.code, f"{ended.text}\nusable cores {cores}")
