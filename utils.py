"""Seeds, the machine, standard streams and signals, and the run folder (configuration, ledger, locks)."""

import errno
import hashlib
import io
import json
import math
import os
import platform
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from shlex import quote

import torch
from filelock import FileLock, Timeout

ROOT = Path(__file__).parent
VERSION = "1.2.0"
# Run folders go on if the version is the same as here when they were made: it stands in their settings. Raise it, to
# VERSION, with every change after which the same flags and seed sample other networks, or train one otherwise.
COMPATIBLE_WITH = "1.1.0"


class InputError(Exception):
    """Something the user can put right; shown as one line, exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class PictureMissing(Exception):
    """A picture that can't be drawn or written, where all else is; shown as one line, exit code 1."""


REMEDIES = dict.fromkeys((errno.EEXIST, errno.ENOTDIR), "a file is where a folder should be, choose another path")
REMEDIES[errno.ENOENT] = "restore it, or choose another path"
REMEDIES[errno.ENOSPC] = "the disk is full, make room and give the same command again"
NO_MORE_PROCESSES = "no more processes or threads can be started, try fewer --workers or a larger limit (ulimit -u)"


def explain_or_raise(error: Exception, run_dir: Path) -> str:
    """One line for what the user can put right, with a remedy; anything else is raised again."""
    reason = " ".join(str(error).split())
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in reason:
        return f"out of memory ({reason}): try a smaller --image_size, fewer images or fewer --workers"
    if "can't start new thread" in reason or getattr(error, "errno", None) == errno.EAGAIN:
        return f"{reason}: {NO_MORE_PROCESSES}"
    if isinstance(error, RuntimeError):
        raise error
    if isinstance(error, ImportError):
        return f"{reason}: pip install -r {quote(relative_to_cwd('requirements.txt'))}"
    if isinstance(error, OSError) and error.errno in REMEDIES:
        return f"{error.filename or run_dir}: {error.strerror}: {REMEDIES[error.errno]}"
    return reason


def one_line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


UNPRINTABLE = r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"


def printable(text: object) -> str:
    """A text in which what would move a terminal's cursor, or is no Unicode, is written out."""
    return re.sub(UNPRINTABLE, lambda found: written_out(found[0]), str(text))


def written_out(char: str) -> str:
    """A character as Python writes it: \\n for a new line."""
    return char.encode("unicode_escape").decode()


def listed(names: Sequence, most: int) -> str:
    """The first names, and dots if there are more."""
    dots = ", ..." if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + dots


# --- seeds and device ---------------------------------------------------------------------------------------------


def child_seed(run_seed: int, architecture: str, *purpose: object) -> int:
    """The seed of a training, the same everywhere; a purpose, "finalist" or ("final", i), tells it from a child's."""
    text = ":".join(map(str, (run_seed, architecture, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread inside: as fast beside other work as alone, and the same sums on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def choose_device(use_cuda: bool) -> str:
    """`cuda` if wanted and there, otherwise `cpu`; says so when it had to fall back."""
    with warnings.catch_warnings(action="ignore"):
        device = "cuda" if use_cuda and torch.cuda.is_available() else "cpu"
    if use_cuda and device == "cpu":
        print("CUDA is not available on this machine: using the CPU")
    return device


GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def of_control_groups(name: str) -> list[str]:
    """What files of this name say in the control groups of this process and in those above: a container's limits."""
    found = []
    for line in OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.exists() else ():
        _, controllers, group = line.split(":", 2)  # version 2 has no list of controllers
        path = Path(group.lstrip("/"))
        for controller, above in product(controllers.split(","), (path, *path.parents)):
            file = GROUPS / controller / above / name
            if file.is_file():
                found.append(file.read_text())
    return found


def usable_cores() -> int:
    """The cores this process may use, a container's if it is in one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [text.split() for text in of_control_groups("cpu.max")]  # version 2: microseconds, and of how many
    quotas += zip(of_control_groups("cpu.cfs_quota_us"), of_control_groups("cpu.cfs_period_us"), strict=True)
    limits = [math.ceil(int(quota) / int(period)) for quota, period in quotas if quota.strip() not in ("max", "-1")]
    return max(1, min([cores, *limits]))


def usable_memory() -> int:
    """The bytes of memory this process may use, a container's if it is in one."""
    limits = of_control_groups("memory.max") + of_control_groups("memory.limit_in_bytes")  # versions 2 and 1
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *(int(limit) for limit in limits if limit.strip() != "max")])


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


# --- standard streams and signals ---------------------------------------------------------------------------------


class Stream(io.FileIO):
    """A standard stream that outlives its reader: what is written later is dropped."""

    def write(self, content: bytes) -> int:
        try:
            while (written := super().write(content)) is None:  # it is full, and another program has made it not block
                select.select([], [self], [])
            return written
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # no later write fails, whoever writes
            os.close(nowhere)
            gone = error.errno in (errno.EPIPE, errno.EIO)  # a reader or a terminal
            if not gone and self.fileno() != 2:  # the report is lost on a full disk, which matters; progress does not
                error.filename = "standard output"
                raise
            return len(content)


def outlive_readers() -> None:
    """Let the program go on silently when its standard streams are closed, from the start or later."""
    while (nowhere := os.open(os.devnull, os.O_RDWR)) <= 2:  # closed from the start: no other file may take its number
        os.set_inheritable(nowhere, True)
    os.close(nowhere)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):  # a notebook has its own
            encoding = getattr(stream, "encoding", None)
            unbuffered = getattr(stream, "write_through", False)  # as with PYTHONUNBUFFERED: each line at once suffices
            by_line = unbuffered or getattr(stream, "line_buffering", False)
            buffer = io.BufferedWriter(Stream(number, "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=by_line))


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """The first SIGINT, SIGTERM or SIGHUP ends the program in order; a second one, or four seconds, at once."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    code = None

    def end(number: int, _: object) -> None:
        nonlocal code
        code = 128 + number
        for other in before:
            signal.signal(other, lambda *_: os._exit(code))
        signal.alarm(4)  # whatever keeps the program from ending, the system ends it then
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(code)

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        if code is not None:  # all is closed: what Python still does takes seconds on a busy machine
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        for number, handler in before.items():
            signal.signal(number, handler)


# --- run folder ---------------------------------------------------------------------------------------------------


def default_run_dir(dataset: str, strategy: str = "reinforce") -> Path:
    return Path("runs", dataset.lower() + ("-random" if strategy == "random" else ""))


def relative_to_cwd(name: str) -> str:
    """The path of a file of this repository as a command in the current folder needs it."""
    return os.path.relpath(ROOT / name)


def check_writable(folder: Path) -> None:
    """InputError, before any work, if no file can be written to a folder, which may not be there yet."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise InputError(f"can't write to {folder} ({there}: {error.strerror}): choose another --run_dir") from None


def check_foreign(folder: Path, sign: str, names: Sequence[str], **types: type) -> None:
    """InputError, before any work, if files of these names would be replaced that this program has not written.

    They are its own if a JSON file called `sign`, which it writes first, is there too and has values of these types.
    """
    if (folder / sign).exists():
        read_json(folder / sign, **types)
    elif foreign := [name for name in names if (folder / name).exists() and (folder / name).stat().st_size]:
        what = f"{', '.join(foreign)}, which this program has not written and would replace"
        raise InputError(f"{folder} has {what}: choose another --run_dir, or move them away")


def serialize(value: dict) -> bytes:
    """What `torch.save` would write."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is either there as a whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON, atomically; NaN is an error."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def parse_json(text: str | bytes, types: dict[str, type], where: str | Path, remedy: str) -> dict:
    """A JSON object with values of these types, numbers finite; InputError that says `where` there is none."""
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        for key, kind in types.items():
            if type(value.get(key)) is not kind or (kind is float and not math.isfinite(value[key])):
                raise ValueError(f"{key} is missing, or not of type {kind.__name__}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is damaged, or was not written by a search ({error}): {remedy}") from None
    return value


def read_json(path: Path, remedy: str = "restore it, or choose another --run_dir", **types: type) -> dict:
    """Read a JSON object in which values have these types; InputError that names the file if it is not one."""
    return parse_json(path.read_bytes(), types, path, remedy)


def environment(device: str = "cpu") -> dict:
    """What the numbers of a run depend on beside its flags: versions, git commit, machine."""
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(describe, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    cpu = next(filter(None, (*names, platform.processor(), platform.machine())), "")
    versions = {"program": VERSION, "python": platform.python_version()}
    versions |= {"torch": torch.__version__, "torchvision": version("torchvision")}
    machine = {"cpu": cpu, "cores": usable_cores(), "system": platform.system()}
    machine["instruction_set"] = torch.backends.cpu.get_cpu_capability()  # equal names may hide different ones
    if device == "cuda" and torch.cuda.is_available():  # perhaps only other machines of a cluster have one
        machine |= {"gpu": torch.cuda.get_device_name(), "cudnn_deterministic": True}  # set by model.train_child
    machine["torch_config"] = " ".join(torch.__config__.show().split("- Build settings")[0].split())  # its libraries
    return {"versions": versions, "git_commit": commit or None, "machine": machine}


ROW_TYPES = {"child": int, "update": int, "actions": list, "architecture": str, "val_accuracy": float,
             "reward": float, "parameters": int, "seconds": float, "seed": int}  # fmt: skip


def read_ledger(path: Path) -> tuple[dict[int, dict], int]:
    """The rows of children.jsonl by child, and the length in bytes of what is whole; a torn last row is left out."""
    rows: dict[int, dict] = {}
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    for n, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
        where, remedy = f"{path}, line {n}", "mend it, or choose another --run_dir"
        row = parse_json(line, ROW_TYPES, where, remedy)
        if row["child"] in rows:
            raise InputError(f"{where} is damaged (child {row['child']} is there twice): {remedy}")
        rows[row["child"]] = row
    return rows, whole


class Ledger:
    """children.jsonl or finalists.jsonl, open for appending: one row per child, all that a search needs to go on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows, whole = read_ledger(path)
        if path.exists() and path.stat().st_size > whole:
            print(f"{path}: dropped a torn last row; its child is trained again")
            os.truncate(path, whole)
        self.file = open(path, "ab")  # noqa: SIM115  (open_run closes it)

    def find(self, new: dict) -> dict | None:
        """The row of a child that was trained before, or None; InputError if it contradicts the `new` one."""
        row = self.rows.get(new["child"])
        if row is not None and any(row[key] != value for key, value in new.items()):
            what = f"child {row['child']} is {row['architecture']}, but this search samples {new['architecture']} there"
            raise InputError(f"{self.path}: {what}: another version or machine made it; choose another --run_dir")
        return row

    def append(self, row: dict) -> None:
        self.file.write((json.dumps(row, allow_nan=False) + "\n").encode())
        self.file.flush()
        self.rows[row["child"]] = row


def lock(folder: Path, what: str) -> AbstractContextManager:
    """Make a folder and lock it for one search or evaluation; InputError if another one has it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise InputError(f"another {what} is running in {folder}: wait for it, or choose another --run_dir") from None


@contextmanager
def open_run(folder: Path, config: dict) -> Iterator[Ledger]:
    """Lock a run folder for one search and open its ledger; config.json keeps a list of all `runs`.

    InputError, with nothing touched, if another search runs there, or if something was trained there with other
    `config["settings"]` or a larger `config["num_children"]`.
    """
    config_file, ledger_file = folder / "config.json", folder / "children.jsonl"
    with lock(folder, "search"):
        before, trained = {"runs": []}, read_ledger(ledger_file)[0]
        if trained or config_file.exists():
            before = read_json(config_file, settings=dict, num_children=int, runs=list)
        if trained:
            check_unchanged(folder, config, before)
        for file in (ledger_file, folder / "finalists.jsonl"):  # a damaged one stops here, with nothing written yet
            foreign = [child for child in read_ledger(file)[0] if not 0 <= child < config["num_children"]]
            if foreign:
                raise InputError(f"{file}: child {foreign[0]} is none of this search: choose another --run_dir")
        this_run = {key: value for key, value in config.items() if key != "settings"}
        this_run["started"] = datetime.now().isoformat(timespec="seconds")
        write_json(config_file, config | {"runs": [*before["runs"], this_run]})
        ledger = Ledger(ledger_file)
        with ledger.file:
            yield ledger


def check_unchanged(folder: Path, config: dict, before: dict) -> None:
    """InputError if the search in a folder, with the configuration `before`, can't go on with this one."""
    now = json.loads(json.dumps(config["settings"])) | {"num_children": config["num_children"]}
    # More children are allowed, fewer are not.
    then = before["settings"] | {"num_children": max(config["num_children"], before["num_children"])}
    if now.get("version") != then.get("version"):
        other = f"a search of version {then.get('version', '1.0')} of this program, which version {VERSION}"
        raise InputError(f"{folder} holds {other} can't continue: choose another --run_dir")
    if changed := differences(now, then):
        other = f"a search with other settings ({changed})"
        raise InputError(f"{folder} holds {other}: use the same flags to continue it, or choose another --run_dir")


def differences(now: dict, then: dict) -> str:
    """What has changed between two settings, in words; an empty text if nothing has."""
    if now.get("images") and now["images"] == then.get("images"):  # the same pictures, whatever their folder is called
        then = then | {"dataset": now["dataset"]}
    said = {"images": "the images have changed", "recipe": "children are trained otherwise"}
    changed = [key for key in now | then if now.get(key) != then.get(key)]
    values = [(key, now.get(key, "the default"), then.get(key, "the default")) for key in changed]
    return "; ".join(said.get(key, f"{key} is {value} now, was {before}") for key, value, before in values)


class Clock:
    """The time a search has taken, all its runs together, in seconds; kept in time.json."""

    def __init__(self, file: Path) -> None:
        self.file, self.started = file, (time.perf_counter(), time.process_time())
        self.total: dict[str, float] | None = dict.fromkeys(("wall", "workers", "main_cpu"), 0.0)
        remedy, ledger = "delete it, only the time is lost", file.with_name("children.jsonl")
        if file.exists():
            self.total = read_json(file, remedy, **dict.fromkeys(self.total, float))
            if min(self.total.values()) < 0:
                raise InputError(f"{file} is damaged, it has a negative time: {remedy}")
        elif ledger.exists() and ledger.stat().st_size:
            self.total = None  # somebody has deleted it: what the earlier runs took is not known any more
        self.before = self.total

    def count(self, num_workers: int) -> None:
        """Count what has passed: on the wall, of all worker slots, and of the main process's computing."""
        if self.before is not None:
            wall, cpu = time.perf_counter() - self.started[0], time.process_time() - self.started[1]
            passed = {"wall": wall, "workers": wall * num_workers, "main_cpu": cpu}
            self.total = {key: self.before[key] + seconds for key, seconds in passed.items()}

    def save(self) -> None:
        if self.total is not None:
            write_json(self.file, self.total)
