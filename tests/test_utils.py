"""Seeds, and the run folder's files."""

import ast
import errno
import hashlib
import json
import os
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import utils
from utils import (
    Clock,
    InputError,
    Ledger,
    child_seed,
    explain_or_raise,
    open_run,
    read_ledger,
    write_atomically,
    write_json,
)

# --- seeds --------------------------------------------------------------------------------------------------------


def test_child_seeds_are_the_same_everywhere():
    """Worked out once with sha256sum: Python's own hash of text differs from process to process."""
    assert child_seed(0, "k5f16p0-k5f32p1") == int(hashlib.sha256(b"0:k5f16p0-k5f32p1").hexdigest()[:8], 16)
    assert len({child_seed(s, a) for s in range(3) for a in ("k3f8p0-k3f8p0", "k3f8p0-k3f8p1")}) == 6


# --- the machine --------------------------------------------------------------------------------------------------

OF_HOST = {"cpu.max": "max 100000\n", "memory.max": "max\n"}


@pytest.mark.parametrize(
    "own, files, cores, memory",
    [
        ("", {}, 64, None),
        ("0::/\n", OF_HOST, 64, None),
        ("0::/\n", {"cpu.max": "200000 100000\n", "memory.max": "1000000\n"}, 2, 1000_000),  # Docker
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1, None),
        ("0::/a/b\n", {"a/cpu.max": "250000 100000\n", "a/b/cpu.max": "max 100000\n", "memory.max": "9\n"}, 3, 9),
        (  # version 1, in a container that sees its own group as the root
            "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n1:name=systemd:/docker/x\n",
            {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}
            | {"memory/memory.limit_in_bytes": "5000\n"}, 4, 5000,
        ),
        (
            "4:memory:/\n3:cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}
            | {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 64, None,
        ),
    ],
)  # fmt: skip
def test_cores_and_memory_are_those_of_the_container(tmp_path, monkeypatch, own, files, cores, memory):
    monkeypatch.setattr(utils, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(utils, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert utils.usable_cores() == cores
    assert utils.usable_memory() == (memory or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), OSError(errno.EAGAIN, "Try again")])
def test_a_limit_of_processes_is_named(tmp_path, error):
    assert "fewer --workers or a larger limit (ulimit -u)" in explain_or_raise(error, tmp_path)


# --- run folder ---------------------------------------------------------------------------------------------------


def row(child: int, **changes) -> dict:
    result = {"child": child, "update": 0, "actions": [0, child], "architecture": f"a{child}", "val_accuracy": 0.5}
    return result | {"reward": 0.5, "parameters": 10, "seconds": 1.0, "seed": 1} | changes


CONFIG = {"num_children": 10, "settings": {"seed": 0, "betas": (0.8, 0.9)}}


def test_a_ledger_reads_back_and_a_torn_last_row_is_dropped(tmp_path, capsys):
    path = tmp_path / "children.jsonl"
    with Ledger(path).file:
        ledger = Ledger(path)
        ledger.append(row(1))
        ledger.append(row(0))
    with open(path, "ab") as file:
        file.write(b'{"child": 2, "upd')
    assert read_ledger(path)[0] == {0: row(0), 1: row(1)}  # reading alone changes nothing
    assert path.read_bytes().endswith(b"upd")
    ledger = Ledger(path)
    assert "torn last row" in capsys.readouterr().out
    ledger.append(row(2))
    assert list(read_ledger(path)[0]) == [1, 0, 2]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "", "{}", json.dumps(row(0)), json.dumps(row(1, seed="x")), json.dumps(row(1, reward=float("nan")))],
)
def test_damage_inside_a_ledger_names_file_and_line_and_changes_nothing(tmp_path, line):
    path = tmp_path / "run" / "children.jsonl"
    path.parent.mkdir()
    content = "\n".join([json.dumps(row(0)), line, json.dumps(row(2)), '{"torn'])
    path.write_text(content)
    write_json(path.parent / "config.json", CONFIG)
    with pytest.raises(InputError, match=r"children.jsonl, line 2 is damaged"), open_run(path.parent, CONFIG):
        pass
    assert path.read_text() == content


def test_a_row_that_contradicts_the_search_stops_it(tmp_path):
    ledger = Ledger(tmp_path / "children.jsonl")
    ledger.append(row(0))
    new = {key: row(0)[key] for key in ("child", "update", "actions", "architecture", "seed")}
    assert ledger.find(new) == row(0)
    assert ledger.find(new | {"child": 1}) is None
    with pytest.raises(InputError, match="child 0 is a0, but this search samples other"):
        ledger.find(new | {"architecture": "other"})


def test_other_settings_are_named_and_nothing_is_touched(tmp_path):
    with open_run(tmp_path, CONFIG) as ledger:
        ledger.append(row(0))
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for other, message in [
        (CONFIG | {"settings": CONFIG["settings"] | {"seed": 1}}, "seed is 1 now, was 0"),
        (CONFIG | {"num_children": 9}, "num_children is 9 now, was 10"),
    ]:
        with pytest.raises(InputError, match=message), open_run(tmp_path, other):
            pass
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    with open_run(tmp_path, CONFIG | {"num_children": 20}):
        pass
    assert json.loads((tmp_path / "config.json").read_text())["num_children"] == 20


def test_the_second_search_in_a_folder_stops_at_once(tmp_path):
    with (
        open_run(tmp_path, CONFIG),
        pytest.raises(InputError, match="another search is running"),
        open_run(tmp_path, CONFIG),
    ):
        pass


def test_a_folder_that_is_not_a_searchs_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text('{"mine": 1}')
    with pytest.raises(InputError, match="was not written by a search"), open_run(tmp_path, CONFIG):
        pass
    assert (tmp_path / "config.json").read_text() == '{"mine": 1}'


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"wall": "1", "workers": 1.0, "main_cpu": 1.0}', "\x00"])
def test_a_damaged_clock_or_configuration_is_named(tmp_path, content):
    for name in ("time.json", "config.json"):
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=r"time\.json"):
        Clock(tmp_path / "time.json")
    with pytest.raises(InputError, match=r"config\.json"), open_run(tmp_path, CONFIG):
        pass


def test_a_clock_goes_on_where_an_earlier_run_stopped(tmp_path):
    file = tmp_path / "time.json"
    write_json(file, {"wall": 100.0, "workers": 200.0, "main_cpu": 10.0})
    clock = Clock(file)
    for _ in range(3):  # what has passed is counted once
        clock.count(num_workers=2)
        clock.save()
    saved = json.loads(file.read_text())
    assert saved == clock.total and 100 < saved["wall"] < 160 and 10 < saved["main_cpu"] < 160
    assert saved["workers"] - 200 == pytest.approx(2 * (saved["wall"] - 100))


def test_a_clock_that_was_deleted_says_nothing_any_more(tmp_path):
    """What the earlier runs took is not known, and shares of the time would be nonsense."""
    file, ledger = tmp_path / "time.json", tmp_path / "children.jsonl"
    ledger.write_text(json.dumps(row(0)) + "\n")
    clock = Clock(file)
    clock.count(num_workers=2)
    clock.save()
    assert clock.total is None and not file.exists()
    ledger.write_text("")  # nothing was trained yet
    Clock(file).save()
    assert json.loads(file.read_text())["wall"] == 0


def test_a_negative_time_is_named(tmp_path):
    write_json(tmp_path / "time.json", {"wall": -5.0, "workers": 1.0, "main_cpu": 1.0})
    with pytest.raises(InputError, match=r"time\.json is damaged, it has a negative time: delete it"):
        Clock(tmp_path / "time.json")


def test_the_same_images_in_a_folder_of_another_name_are_the_same(tmp_path):
    named = {"num_children": 10, "settings": {"dataset": "old", "images": "f1"}}
    with open_run(tmp_path, named) as ledger:
        ledger.append(row(0))
    with open_run(tmp_path, named | {"settings": {"dataset": "new", "images": "f1"}}):
        pass
    for other, message in (({"dataset": "new", "images": "f2"}, "images have changed"),
                           ({"dataset": "MNIST", "images": None}, "dataset is MNIST now, was new")):  # fmt: skip
        with pytest.raises(InputError, match=message), open_run(tmp_path, named | {"settings": other}):
            pass


def test_files_are_written_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError):
        write_json(path, float("nan"))


# --- modules ------------------------------------------------------------------------------------------------------


def test_no_module_imports_one_that_imports_it_or_a_benchmark():
    """Imports inside functions count, too."""
    imports = {}
    for file in (Path(__file__).parent.parent).glob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        imports[file.stem] = {name.split(".")[0] for name in names}
    assert all("benchmarks" not in names for names in imports.values())
    order = list(TopologicalSorter(imports).static_order())  # CycleError if there is a circle
    assert order.index("search_space") < order.index("references") < order.index("evaluation") < order.index("train")
