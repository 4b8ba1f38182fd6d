"""Searches on a Ray cluster: real nodes on this machine, really killed. Needs requirements-cluster.txt."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import test_workers
import torch
from test_train import ROOT, command, rows_without_seconds
from test_workers import add_to_shared, die, die_once, fail, run_out_of_memory, sleep

from utils import read_ledger
from workers import Cluster, TaskFailed

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]
SEARCH = ["--num_children", "14", "--train_images", "2000", "--num_finalists", "0", "--children_per_update", "3"]


def test_tasks_run_on_a_cluster_as_in_processes_of_this_machine(tmp_path):
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(test_workers)  # a node gets the program's files, not those of the tests
    with Cluster("local", 2, torch.ones(1000), None, 0.0) as workers:
        assert workers.num_workers == 2
        results = [future.result() for future in [workers.submit(workers.run, add_to_shared, x) for x in range(6)]]
        assert [value for value, _ in results] == [1000 + x for x in range(6)]
        with pytest.raises(ValueError, match=r"^no such child$"):
            workers.submit(workers.run, fail).result()
        with pytest.raises(TaskFailed, match=r"^out of memory: CUDA error"):
            workers.submit(workers.run, run_out_of_memory).result()
        assert workers.submit(workers.run, die_once, str(tmp_path / "marker")).result() == "alive"
        with pytest.raises(TaskFailed, match=r"^its worker process died 3 times, perhaps for lack of memory$"):
            workers.submit(workers.run, die).result()
        workers.timeout = 0.5
        with pytest.raises(TaskFailed, match=r"^took longer than 0\.5 seconds$"):
            workers.submit(workers.run, sleep).result()
        workers.timeout = None
        assert workers.submit(workers.run, add_to_shared, 0).result()[0] == 1000


def test_a_process_with_a_gpu_is_kept_for_the_next_child():
    """A new one would import PyTorch and upload the images. Ray takes it on trust that there is a GPU."""
    ray = pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    ray.cloudpickle.register_pickle_by_value(test_workers)
    resources = {"num_cpus": 2, "num_gpus": 1, "include_dashboard": False}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=resources)
    try:
        with Cluster(cluster.address, 2, torch.ones(1000), None, 0.5) as workers:
            assert workers.num_workers == 2
            processes = [workers.submit(workers.run, add_to_shared, x).result()[1] for x in range(6)]
    finally:
        cluster.shutdown()
    assert len(set(processes)) <= 2


def start_search(folder: str, address: str, cwd: Path) -> subprocess.Popen:
    """A search with pending children: it has written at least two rows."""
    program = [sys.executable, str(ROOT / "train.py"), *SEARCH, "--data_dir", str(ROOT / "data")]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    search = subprocess.Popen([*program, "--run_dir", folder, "--cluster", address], cwd=cwd, **output)
    ledger = cwd / folder / "children.jsonl"
    while not ledger.exists() or len(read_ledger(ledger)[0]) < 2:
        assert search.poll() is None, search.communicate()[0]
        time.sleep(0.05)
    return search


def test_a_node_that_dies_changes_nothing(tmp_path):
    """The only node with a CPU dies while it trains a child; another one has joined, and does the rest."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    first = cluster.add_node(num_cpus=1)
    search = start_search("cluster", cluster.address, tmp_path)
    try:
        cluster.add_node(num_cpus=1)
        cluster.remove_node(first, allow_graceful=False)
        before = len(read_ledger(tmp_path / "cluster" / "children.jsonl")[0])
        output, _ = search.communicate(timeout=600)
    finally:
        search.kill()
        cluster.shutdown()
    assert search.returncode == 0, output
    assert before < 14 and "14 trained (0 failed)" in output

    result = command(*SEARCH, "--run_dir", "processes", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert rows_without_seconds(tmp_path / "cluster") == rows_without_seconds(tmp_path / "processes")
    best = [(tmp_path / folder / "best.json").read_bytes() for folder in ("cluster", "processes")]
    assert best[0] == best[1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_search_on_a_cluster_is_stopped_and_goes_on(tmp_path, number, code):
    pytest.importorskip("ray")
    search = start_search("run", "local", tmp_path)
    search.send_signal(number)
    output, _ = search.communicate(timeout=600)
    assert search.returncode == code and "Traceback" not in output, output
    rows = read_ledger(tmp_path / "run" / "children.jsonl")[0]
    assert 2 <= len(rows) < 14
    result = command(*SEARCH, "--run_dir", "run", cwd=tmp_path)  # on this machine
    assert result.returncode == 0 and "14 trained (0 failed)" in result.stdout, result.stderr


def test_a_cluster_without_room_is_one_line(tmp_path):
    pytest.importorskip("ray")
    result = command("--cluster", "local", "--gpus_per_child", "0.5", "--run_dir", str(tmp_path / "run"), cwd=tmp_path)
    assert result.returncode == 2 and len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert "no room for a child" in result.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "..:1"])
def test_no_cluster_is_one_line(tmp_path, address):
    pytest.importorskip("ray")
    result = command("--cluster", address, "--run_dir", str(tmp_path / "run"), cwd=tmp_path)
    assert result.returncode == 2 and len(result.stderr.strip().splitlines()) == 1, result.stderr


@pytest.mark.parametrize("cluster", [[], ["--cluster", "local"]])
def test_ray_is_needed_with_the_flag_only(tmp_path, cluster):
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules['ray'] = None; import train; train.main()"
    flags = ["--num_children", "1", "--train_images", "100", "--data_dir", str(ROOT / "data"), *cluster]
    run = [sys.executable, "-c", program, *flags, "--run_dir", str(tmp_path)]
    result = subprocess.run(run, capture_output=True, text=True, timeout=600)
    assert result.returncode == (2 if cluster else 0), result.stderr
    assert not cluster or result.stderr.endswith("--cluster needs Ray: pip install -r requirements-cluster.txt\n")
