"""Nothing is ever lost, and nothing hangs: real processes, really killed."""

import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import stand_in
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import train
from utils import InputError, read_ledger

ROOT = Path(__file__).parent.parent
STAND_IN, REAL = ROOT / "tests" / "stand_in.py", ROOT / "train.py"


started: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def nothing_goes_on_after_a_test():
    """A test that fails must not leave its search running."""
    yield
    while started:
        started.pop().kill()


class Search:
    """A search in a process group of its own, as a terminal starts it."""

    def __init__(self, run_dir: Path, *flags: str, program: Path = STAND_IN, **options) -> None:
        command = [sys.executable, str(program), "--data_dir", str(ROOT / "data"), "--run_dir", str(run_dir), *flags]
        self.ledger = run_dir / "children.jsonl"
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
        )
        started.append(self.process)

    def num_rows(self) -> int:
        """Of children and finalists."""
        files = (self.ledger, self.ledger.with_name("finalists.jsonl"))
        return sum(file.read_bytes().count(b"\n") for file in files if file.exists())

    def wait_until(self, condition: Callable[[], object], seconds: float = 600) -> None:
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and not condition():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def end(self) -> tuple[int, str, str]:
        """Exit code, standard output and standard error without the progress bar."""
        output, errors = self.process.communicate(timeout=600)
        lines = errors.replace("\r", "\n").splitlines()
        return (
            self.process.returncode,
            output,
            "\n".join(line for line in lines if line and not re.search("child/s|s/child|finalist|passed,", line)),
        )

    def workers(self) -> list[int]:
        """The processes that train children."""
        parent = str(self.process.pid)
        found = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                pid, rest = status.read_text().split(" ", 1)
                command = status.with_name("cmdline").read_bytes()
            except OSError:
                continue
            if rest.rsplit(")", 1)[1].split()[1] == parent and b"spawn_main" in command:
                found.append(int(pid))
        return found


def blocks_sigint(pid: int) -> bool:
    blocked = re.search("SigBlk:\\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text())[1]
    return bool(int(blocked, 16) >> (signal.SIGINT - 1) & 1)


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()]


def result_of(run_dir: Path) -> tuple:
    """All that two searches must agree in: ledger apart from seconds, best architecture, policy."""
    rows, _ = read_ledger(run_dir / "children.jsonl")
    rows = [{key: value for key, value in rows[child].items() if key != "seconds"} for child in sorted(rows)]
    policy = torch.load(run_dir / "controller.pt", weights_only=True)["state_dict"]
    return rows, json.loads((run_dir / "best.json").read_text()), {k: v.tolist() for k, v in policy.items()}


# --- killed -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_30_random_points_a_search_ends_as_if_undisturbed(tmp_path):
    flags = ("--num_children", "150", "--workers", "3")
    Search(tmp_path / "whole", *flags).end()
    dice, kills, before = random.Random(0), 0, b""
    while kills < 30:
        search = Search(tmp_path / "killed", *flags)
        enough = search.num_rows() + dice.choice([0, 0, 1, 2, 4, 8])
        search.wait_until(lambda search=search, enough=enough: search.num_rows() >= enough and search.num_rows() > 0)
        time.sleep(dice.random() * 0.03)
        os.kill(search.process.pid, signal.SIGKILL)
        if search.end()[0] == 0:
            break
        kills += 1
        ledger = search.ledger.read_bytes()
        whole = before[: before.rfind(b"\n") + 1]
        assert ledger.startswith(whole)  # no row that was written is written again, or lost
        before = ledger
        if kills % 5 == 0:  # and as a machine that stops in the middle of a write leaves it
            with open(search.ledger, "ab") as file:
                file.write(b'{"child": 7, "upda')
    assert kills >= 20
    search = Search(tmp_path / "killed", *flags)
    search.wait_until(lambda: search.num_rows() >= 153)  # among the finalists
    os.kill(search.process.pid, signal.SIGKILL)
    assert search.end()[0] == -9
    code, output, _ = Search(tmp_path / "killed", *flags).end()
    assert code == 0 and "150 trained, the best 15 twice (0 failed)" in output
    assert result_of(tmp_path / "killed") == result_of(tmp_path / "whole")


@pytest.mark.slow
def test_killed_with_real_children(tmp_path):
    flags = ("--num_children", "6", "--train_images", "1000", "--children_per_update", "2", "--workers", "2")
    Search(tmp_path / "whole", *flags, program=REAL).end()
    for rows in (1, 3, 5):
        search = Search(tmp_path / "killed", *flags, program=REAL)
        search.wait_until(lambda search=search, rows=rows: search.num_rows() >= rows)
        workers = search.workers()
        os.kill(search.process.pid, signal.SIGKILL)
        search.end()
        search_gone = time.monotonic() + 10
        while alive(workers):
            assert time.monotonic() < search_gone, "workers outlive the search"
            time.sleep(0.1)
    assert Search(tmp_path / "killed", *flags, program=REAL).end()[0] == 0
    assert result_of(tmp_path / "killed") == result_of(tmp_path / "whole")


@pytest.mark.slow
def test_killed_at_random_points_an_evaluation_ends_as_if_undisturbed(tmp_path):
    """With --references: 25 trainings, of networks whose training time was measured once, for both."""
    images = np.random.default_rng(0).integers(0, 256, (60, 12, 12), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", train_images=images, train_labels=np.arange(60) % 3)
    flags = ("--mode", "evaluate", "--dataset", str(tmp_path / "own.npz"), "--architecture", "k3f8p0-k3f8p0")
    flags += ("--eval_epochs", "100", "--num_seeds", "3", "--references", "--workers", "2")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert Search(whole, *flags, program=REAL).end()[0] == 0

    def finals(run_dir: Path) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in run_dir.glob("finals-*/final-*")}

    folder = killed / "finals-k3f8p0-k3f8p0"
    folder.mkdir(parents=True)
    name = "final-seconds_of_a_step.json"
    settings = json.loads((whole / folder.name / "settings.json").read_text())
    (folder / "settings.json").write_text(json.dumps(settings | {"complete": False}))
    (folder / name).write_bytes(finals(whole)[name])

    dice, kills, before = random.Random(0), 0, {}
    while kills < 5:
        evaluation = Search(killed, *flags, program=REAL)
        enough = len(finals(killed)) + dice.choice([1, 2, 4])
        evaluation.wait_until(lambda enough=enough: len(finals(killed)) >= enough)
        time.sleep(dice.random() * 0.05)
        os.kill(evaluation.process.pid, signal.SIGKILL)
        if evaluation.end()[0] == 0:
            break
        kills += 1
        assert before.items() <= finals(killed).items()  # no training that had ended was repeated, or lost
        before = finals(killed)
    assert kills >= 5
    code, output, _ = Search(killed, *flags, program=REAL).end()
    assert code == 0 and "3 of 3 trainings have ended before" in output
    assert finals(killed).keys() == finals(whole).keys()
    results = [json.loads((run / "evaluation-k3f8p0-k3f8p0.json").read_text()) for run in (whole, killed)]
    saved = [torch.load(run / "best_child-k3f8p0-k3f8p0.pt", weights_only=True) for run in (whole, killed)]
    assert all(result.pop("seconds") > 0 for result in results) and results[0] == results[1]
    weights = [found.pop("state_dict") for found in saved]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0]) and saved[0] == saved[1]


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_time(tmp_path):
    flags = ("--num_children", "4", "--train_images", "3000", "--children_per_update", "2", "--workers", "1")
    search = Search(tmp_path / "disturbed", *flags, program=REAL)
    search.wait_until(lambda: search.num_rows() >= 1)
    victims = search.workers()
    os.kill(victims[0], signal.SIGKILL)
    code, output, _ = search.end()
    assert code == 0 and "4 trained (0 failed)" in output and len(victims) == 1
    assert Search(tmp_path / "whole", *flags, program=REAL).end()[0] == 0
    assert result_of(tmp_path / "disturbed") == result_of(tmp_path / "whole")


@pytest.mark.parametrize(
    "signal_number, code, seconds",
    [
        (signal.SIGINT, 130, 0.2),  # while the workers start
        *(
            pytest.param(*end, 5, marks=pytest.mark.slow)  # while they train
            for end in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9))
        ),
    ],
)
def test_no_process_outlives_the_search(tmp_path, signal_number, code, seconds):
    search = Search(tmp_path / "run", "--num_children", "50", "--workers", "2", program=REAL)
    search.wait_until(lambda: len(search.workers()) == 2)
    time.sleep(seconds)
    workers = search.workers()
    assert all(blocks_sigint(pid) for pid in workers)  # or Ctrl-C would end them with a traceback each
    if signal_number == signal.SIGINT:
        os.killpg(search.process.pid, signal_number)  # Ctrl-C reaches the whole group
    else:
        os.kill(search.process.pid, signal_number)
    started = time.monotonic()
    ended, _, errors = search.end()
    assert ended == code and time.monotonic() - started < 30  # all 50 children take minutes
    while alive(workers):
        assert time.monotonic() - started < 60, "workers outlive the search"
        time.sleep(0.1)
    if signal_number == signal.SIGINT:
        assert errors == "train.py: stopped; the same command goes on from here"
    elif signal_number == signal.SIGTERM:
        assert errors == ""


# --- children that fail -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_child_that_takes_too_long_gets_reward_0_and_keeps_it(tmp_path):
    flags = ("--num_children", "2", "--child_timeout", "0.01", "--workers", "1")
    for _ in range(2):
        code, _, errors = Search(tmp_path / "run", *flags, program=REAL).end()
        assert code == 2 and "all 2 children failed, the first with: took longer than 0.01 seconds" in errors
    rows, _ = read_ledger(tmp_path / "run" / "children.jsonl")
    assert [row["reward"] for row in rows.values()] == [0.0, 0.0]
    assert all(row["error"] == "took longer than 0.01 seconds" for row in rows.values())


@pytest.mark.slow
def test_children_that_kill_their_worker_three_times_are_counted_and_the_search_goes_on(tmp_path):
    flags, deadly = ("--num_children", "8", "--workers", "2"), os.environ | {"STAND_IN_DEADLY": "1"}
    for _ in range(2):  # the second run keeps the errors, and trains nothing
        code, output, _ = Search(tmp_path / "run", *flags, env=deadly).end()
        rows, _ = read_ledger(tmp_path / "run" / "children.jsonl")
        dead = [row for row in rows.values() if row["seed"] % 3 == 0]
        assert code == 0 and 0 < len(dead) < 8 == len(rows) and f"8 trained ({len(dead)} failed)" in output
        for row in rows.values():
            assert row.get("error") == (
                "its worker process died 3 times, perhaps for lack of memory" if row in dead else None
            )
            assert row["reward"] == (0 if row in dead else 0.9 + row["seed"] % 997 / 10_000)


# --- folders ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_search_in_a_running_ones_folder_stops_and_a_dead_ones_lock_does_not_block(tmp_path):
    flags = ("--num_children", "100", "--workers", "1")
    slow = os.environ | {"STAND_IN_SECONDS": "0.2"}
    first = Search(tmp_path / "run", *flags, env=slow)
    first.wait_until(lambda: first.num_rows() >= 1)
    code, _, errors = Search(tmp_path / "run", *flags).end()
    assert code == 2 and "another search is running" in errors and len(errors.splitlines()) == 1
    rows = first.num_rows()
    first.wait_until(lambda: first.num_rows() > rows)  # the first goes on
    os.kill(first.process.pid, signal.SIGKILL)
    first.end()
    code, output, _ = Search(tmp_path / "run", *flags).end()
    assert code == 0 and "100 trained" in output


def test_a_full_disk_is_one_line_and_the_ledger_stays_readable(tmp_path, monkeypatch, capsys, undrawn):
    full = os.environ | {"STAND_IN_LARGEST_FILE": "4000"}
    flags = ("--num_children", "19", "--workers", "1")
    code, _, errors = Search(tmp_path / "run", *flags, env=full).end()
    assert code == 2 and "File too large" in errors and len(errors.splitlines()) == 1
    rows, whole = read_ledger(tmp_path / "run" / "children.jsonl")
    assert rows and whole > 3000
    monkeypatch.setattr(train, "attempt", stand_in.attempt)
    train.main(["--data_dir", str(ROOT / "data"), "--run_dir", str(tmp_path / "run"), *flags])  # space again
    assert "19 trained" in capsys.readouterr().out


@pytest.mark.parametrize("run_dir", ["/proc/run", "/dev/null/run"])
def test_a_folder_that_cannot_be_written_is_one_line(run_dir, capsys):
    with pytest.raises(SystemExit, match="2"):
        train.main(["--num_children", "2", "--run_dir", run_dir])
    errors = capsys.readouterr().err
    assert run_dir in errors and len(errors.splitlines()) == 1


# --- nonsense -----------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_ledger_is_read_or_named_as_damaged(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("ledger") / "children.jsonl"
    path.write_bytes(content)
    try:
        rows, whole = read_ledger(path)
        assert whole <= len(content) and all(type(child) is int for child in rows)
    except InputError as error:
        assert "children.jsonl, line " in str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
ROW = {"child": 0, "update": 0, "actions": [0], "architecture": "k3f8p0", "val_accuracy": 0.5, "reward": 0.5}
ROW |= {"parameters": 1, "seconds": 1.0, "seed": 1}


@given(st.sampled_from(sorted(ROW)), json_values)
@settings(max_examples=300, deadline=None)
def test_any_value_in_a_row_is_read_or_named_as_damaged(tmp_path_factory, key, value):
    path = tmp_path_factory.mktemp("ledger") / "children.jsonl"
    path.write_text(json.dumps(ROW | {key: value}) + "\n")
    try:
        rows, _ = read_ledger(path)
        assert type(rows[next(iter(rows))][key]) is type(ROW[key])
    except InputError as error:
        assert "children.jsonl, line 1 is damaged" in str(error)


FLAGS = [f"--{name}" for name in vars(train.parse_arguments([]))]
VALUES = (
    "nan",
    "inf",
    "-1",
    "0",
    "1",
    "1e999",
    "2.5",
    "",
    "True",
    "generate",
    "MNIST",
    "k5f16p0-k5f32p1",
    "k5f16p0-",
    "é",
)


@given(st.lists(st.sampled_from(FLAGS) | st.sampled_from(VALUES) | st.text(max_size=8), max_size=6))
@example(["a\nb"])
@settings(max_examples=300, deadline=None)
def test_any_flags_are_taken_or_refused_in_one_line(arguments):
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            train.parse_arguments(arguments)
    except SystemExit as stopped:
        assert stopped.code in (0, 2)
        assert stopped.code == 0 or len(errors.getvalue().splitlines()) == 1


def test_files_from_strangers_run_no_code(tmp_path):
    """Weights are read with weights_only=True: a pickle that would run code is refused."""

    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"state_dict": Evil()}, tmp_path / "controller.pt")
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        torch.load(tmp_path / "controller.pt", weights_only=True)
    assert not (tmp_path / "ran").exists()
    loads = [line for file in ROOT.glob("*.py") for line in file.read_text().splitlines() if "torch.load(" in line]
    assert all("weights_only=True" in line for line in loads)
