"""Tries what people bring and what happens to programs: one line for each strange input, and what became of it.

    python -m benchmarks.strange_inputs                 # all of them, in a few minutes
    python -m benchmarks.strange_inputs pages twice     # those with a word in their name

Each input is made anew from small pictures, the program runs on it, and its exit code and words are compared with what
is expected: "fine", "one line" (exit code 2), or what is wrong: a traceback, a hang, silence. Exits with 1 if any is.
"""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from utils import ROOT, usable_cores

TIME_LIMIT = 120 * max(1, os.getloadavg()[0] / usable_cores())  # seconds, more beside other work: longer is a hang
WIDEST = 110  # characters of what the program said that are shown
QUICK = ("--child_epochs", "0.1", "--num_children", "2", "--workers", "1")
ENDED = 0, 1, 2, 130, 141, 143, -signal.SIGPIPE, -signal.SIGTERM  # not by a hang, whatever the stream has become


class Outcome(NamedTuple):
    code: int | None  # None: it did not end
    text: str  # standard output and standard error


class Input(NamedTuple):
    name: str
    run: Callable[[Path], Outcome]
    codes: tuple[int, ...]
    says: str  # a regular expression


INPUTS: list[Input] = []


def strange(code: int | tuple[int, ...], says: str) -> Callable:
    """Register a function that makes an input in a folder and runs the program on it; its docstring is the name."""

    def register(run: Callable) -> Callable:
        codes = code if isinstance(code, tuple) else (code,)
        INPUTS.append(Input(run.__doc__, run, codes, says))
        return run

    return register


# --- pictures -----------------------------------------------------------------------------------------------------


def noise(key: object, size: tuple[int, ...] = (30, 40, 3)) -> np.ndarray:
    """Colours that are the same for the same key."""
    return np.random.default_rng(zlib.crc32(repr(key).encode())).integers(0, 256, size, dtype=np.uint8)


def write(folder: Path, n: int = 15, classes: tuple[str, ...] = ("cat", "dog"), suffix: str = "png") -> Path:
    """A folder of pictures for each class, no two of them alike."""
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            Image.fromarray(noise((str(folder)[-40:], name, i))).save(folder / name / f"{name}{i:03}.{suffix}")
    return folder


# --- the program --------------------------------------------------------------------------------------------------


def program(root: Path, *flags: str, before: Callable | None = None, limit: float = TIME_LIMIT) -> Outcome:
    """Run the program in `root` on what is called `set` there, in a fresh process that has no workers beside it.

    `before` is called in that process first.
    """
    flags = flags if "--dataset" in flags else ("--dataset", "set", *flags)
    flags = flags if "evaluate" in flags else (*QUICK, *flags)
    context = multiprocessing.get_context("forkserver")  # a new process has all modules already
    process = context.Process(target=run_here, args=(root, flags, before))
    process.start()
    process.join(limit)
    if hung := process.is_alive():
        process.kill()
        process.join()
    said = root / "said"
    return Outcome(None if hung else process.exitcode, said.read_text(errors="replace") if said.exists() else "")


def run_here(root: Path, flags: tuple[str, ...], before: Callable | None) -> None:
    """Runs in the new process."""
    import evaluation
    import settings
    import train

    os.chdir(root)
    said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.argv = ["train.py", *flags]
    settings.Workers = evaluation.Workers = ThisProcess
    if before:
        before()
    train.main([*flags])
    sys.stdout.flush()


class ThisProcess:
    """In the place of `Workers`: it trains at once, here."""

    def __init__(self, num_workers: int, shared: object = None, *_: object) -> None:
        self.num_workers, self.shared = num_workers, shared

    def submit(self, job: Callable, *args: object) -> Future:
        future: Future = Future()
        try:
            future.set_result(job(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def run(self, function: Callable, *args: object) -> object:
        return function(self.shared, *args)

    def __enter__(self) -> "ThisProcess":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def evaluated(root: Path, **options: object) -> Outcome:
    """A search and an evaluation; what both said."""
    searched = program(root, **options)
    if searched.code != 0:
        return searched
    flags = ("--mode", "evaluate", "--eval_epochs", "0.1", "--num_seeds", "1", "--workers", "1")
    tested = program(root, *flags, **options)
    return Outcome(tested.code, searched.text + tested.text)


@contextmanager
def real(root: Path, *flags: str, **options: object) -> Iterator[subprocess.Popen]:
    """The program with its worker processes, as a terminal starts it; nothing of it is left afterwards."""
    command = [sys.executable, str(ROOT / "train.py"), "--dataset", "set", "--child_epochs", "0.1", *flags]
    process = subprocess.Popen(command, cwd=root, start_new_session=True, **options)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait(process: subprocess.Popen, limit: float = TIME_LIMIT) -> int | None:
    """Its exit code; None if it does not end."""
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None


def until(condition: Callable[[], object], limit: float = TIME_LIMIT) -> None:
    """Wait for something that the program does."""
    deadline = time.monotonic() + limit
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def rows(root: Path) -> int:
    """Children in the ledger."""
    ledger = root / "runs" / "set" / "children.jsonl"
    return ledger.read_bytes().count(b"\n") if ledger.exists() else 0


def goes_on(root: Path, code: int | None, *flags: str) -> Outcome:
    """After a program that ended with `code`: what the same command makes of what it left."""
    if code is None:
        return Outcome(None, "it did not end")
    with real(root, *flags, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        said, _ = process.communicate(timeout=TIME_LIMIT)
    return Outcome(process.returncode, said)


# --- running them -------------------------------------------------------------------------------------------------


def verdict(strange_input: Input, outcome: Outcome) -> str:
    """Whether the program did what is expected of it; otherwise what is wrong, in capitals."""
    lines = [line for line in outcome.text.splitlines() if "train.py: " in line]
    if outcome.code is None:
        return "HANG"
    if re.search(r"Traceback|Exception ignored", outcome.text):
        return "TRACEBACK"
    if outcome.code not in strange_input.codes:
        return f"EXIT CODE {outcome.code}"
    alone = outcome.code == 2 and strange_input.codes == (2,)  # the error must be clear without what was said before
    said = "\n".join(lines) if alone else outcome.text
    if not re.search(strange_input.says, said):
        return "SILENT" if outcome.code == 0 else "UNCLEAR"
    if outcome.code == 2:
        return "one line" if len(lines) == 1 else f"{len(lines)} LINES"
    return "fine"


def essence(strange_input: Input, outcome: Outcome) -> str:
    """The line that was expected, or the last one."""
    lines = [line for line in re.split(r"[\r\n]+", outcome.text) if line.strip() and "?child" not in line]
    asked = [line for line in lines if re.search(strange_input.says, line)] if strange_input.says else []
    line = (asked or [line for line in lines if "train.py: " in line] or lines or ["nothing"])[0 if asked else -1]
    line = re.sub(r"/\S*/tmp\w+/", "", line)
    return line if len(line) <= WIDEST else f"{line[:WIDEST]}..."


def attempt(strange_input: Input) -> tuple[Input, Outcome]:
    """Make an input in a folder of its own and run the program on it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        try:
            return strange_input, strange_input.run(Path(folder))
        except subprocess.TimeoutExpired:
            return strange_input, Outcome(None, "it did not end")


def main(words: list[str]) -> None:
    """Try the inputs with any of these words in their names, several at a time."""
    from benchmarks import strange_folders, strange_pictures, strange_surroundings  # noqa: F401  (they register their inputs)

    chosen = [each for each in INPUTS if not words or any(word in each.name for word in words)]
    multiprocessing.get_context("forkserver").set_forkserver_preload(["train", "plots", "torch.utils.tensorboard"])
    width, wrong = max((len(each.name) for each in chosen), default=0), 0
    with ThreadPoolExecutor(2 * usable_cores()) as threads:
        for each, outcome in threads.map(attempt, chosen):
            judged = verdict(each, outcome)
            wrong += judged.isupper()
            print(f"{each.name:<{width}}  {judged:<12} {outcome.code!s:>4}  {essence(each, outcome)}", flush=True)
    print(f"{len(chosen)} inputs, {wrong} of them not as expected")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    from benchmarks import strange_inputs  # the module that the inputs register with, not this one

    strange_inputs.main(sys.argv[1:])
