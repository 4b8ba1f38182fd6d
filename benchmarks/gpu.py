"""All that is to be known of a GPU, in at most eight minutes: results/gpu.json, written as it goes, and a page of it.

    python -m benchmarks.gpu                 on a machine with CUDA
    python -m benchmarks.gpu --rehearsal     the same in small, two minutes; without CUDA it is always this, on the CPU

A rehearsal is no result: it goes to runs/gpu-rehearsal.json. What takes too long or fails is noted, and the rest goes on.
"""

import argparse
import hashlib
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from unittest.mock import patch

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import model
from benchmarks.common import PANEL, RESULTS, input_errors, load_data, read, table
from benchmarks.paper_cost import SHAPE, forward_flops, random_networks
from datasets import Data, Images
from model import PAPER_RECIPE, Recipe, on_device, train_child
from search_space import Architecture, parse_architecture
from utils import ROOT, child_seed, choose_device, environment, read_json, read_ledger, usable_cores, write_json
from workers import TaskFailed, Workers

MINUTES = 8
SEEDS = (0, 1, 2)
T_95 = 2.306  # half of the 95 % interval of a mean of 9 differences, in standard errors (Student's t)
ONE_OF_THE_PANEL = "k5f16p0-k5f32p1"


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    search: tuple[str, ...] = ("--num_children", "6", "--train_images", "2000")
    evaluation: tuple[str, ...] = ("--num_seeds", "2", "--train_images", "2000", "--eval_epochs", "1")
    default_settings: bool = True
    recipe: Recipe = Recipe()  # noqa: RUF009  (frozen)
    compared: tuple[str, ...] = ("k3f8p0-k3f8p0", ONE_OF_THE_PANEL, "k7f32p2-k7f32p2")
    panel: tuple[str, ...] = PANEL
    workers: tuple[int, ...] = (1, 2, 4, 8)
    mps_workers: tuple[int, ...] = (4, 8, 16)
    cpu_workers: tuple[int, ...] = (2, 0)  # 0: one a core
    steps: tuple[int, int] = (20, 60)  # of two trainings: what is counted is their difference
    paper_layers: int = 15
    paper_batch: int = PAPER_RECIPE.batch_size
    paper_images: int = 45_000
    paper_epochs: tuple[float, float] = (0.05, 1.05)
    patience: int = 1  # times all limits of time: who rehearses on a busy machine has time


REHEARSAL = Size(
    search=("--num_children", "2", "--train_images", "300"),
    evaluation=("--num_seeds", "1", "--train_images", "300", "--eval_epochs", "1"),
    default_settings=False, recipe=Recipe(epochs=0.01), panel=PANEL[:2], workers=(1, 2), mps_workers=(), cpu_workers=(2,), steps=(2, 4), paper_layers=3,
    paper_batch=16, paper_images=160, paper_epochs=(0.1, 0.3), patience=10,
)  # fmt: skip


# --- the two commands of the README -------------------------------------------------------------------------------


def command(folder: Path, *flags: str) -> dict:
    """A run of train.py: its time, and what it left in its folder."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "train.py", *flags, "--run_dir", str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    row = {"command": f"python train.py {' '.join(flags)}", "seconds": time.perf_counter() - started}
    if done.returncode:
        return row | {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    if "evaluate" in flags:
        found = read_json(folder / "evaluation.json")
        return row | {key: found[key] for key in ("architecture", "device", "top1_mean", "top1_std")}
    found, config = read_json(folder / "best.json"), read_json(folder / "config.json")
    row |= {key: found[key] for key in ("architecture", "val_accuracy", "children")}
    row |= {"device": config["settings"]["device"], "gpu": config["machine"].get("gpu")}
    return row | {"failed": sum("error" in child for child in read_ledger(folder / "children.jsonl")[0].values())}


def small_commands(size: Size, device: str) -> Iterator[dict]:
    """Both with few images; on the GPU a search with one and with three workers, whose ledgers must be equal."""
    rows, cuda = [], ("--use_cuda", "True")
    with tempfile.TemporaryDirectory() as name:
        one, three = Path(name, "one"), Path(name, "three")
        for folder, flags in (
            (Path(name, "cpu"), ("--mode", "generate", *size.search)),
            (one, ("--mode", "generate", *cuda, *size.search, "--workers", "1")),
            (three, ("--mode", "generate", *cuda, *size.search, "--workers", "3")),
            (one, ("--mode", "evaluate", *cuda, *size.evaluation)),
        )[device == "cpu" :]:  # where the first two would be the same
            rows.append(command(folder, *flags))
            yield {"rows": rows}
        ledgers = [read_ledger(folder / "children.jsonl")[0] for folder in (one, three)]
    for row in itertools.chain(*(ledger.values() for ledger in ledgers)):
        del row["seconds"]
    same = bool(ledgers[0]) and ledgers[0] == ledgers[1]
    yield {"rows": rows, "one_and_three_workers_give_the_same_ledger": same}


def default_commands(size: Size, device: str) -> Iterator[dict]:
    """Both as they stand in the README, the search on the GPU, too."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for mode in ("generate", "evaluate") if size.default_settings else ():
            rows.append(command(Path(name), "--mode", mode, "--use_cuda", "True"))
            yield {"rows": rows}
    yield {"rows": rows}


# --- children -----------------------------------------------------------------------------------------------------


def train_one(data: Data, text: str, recipe: Recipe, seed: int, device: str) -> dict:
    """Runs in a worker process: train a child as a search does; its weights as a digest."""
    trained = train_child(parse_architecture(text), on_device(data, device), recipe, child_seed(seed, text))
    digest = hashlib.sha256()
    for tensor in trained.child.cpu().state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return {"accuracy": trained.accuracy, "seconds": trained.seconds, "weights": digest.hexdigest()[:16]}


def train_all(workers: Workers, jobs: list[tuple[str, int]], recipe: Recipe) -> list[dict]:
    """Train architectures, each with a seed."""
    trainings = [workers.submit(workers.run, train_one, text, recipe, seed, workers.device) for text, seed in jobs]
    return [training.result() for training in trainings]


def accuracy(size: Size, device: str) -> Iterator[dict]:
    """The same trainings on GPU and CPU, as pairs; and some of them on the GPU again, in other processes."""
    jobs, data = list(itertools.product(size.compared, SEEDS)), load_data("MNIST")[0]
    found = {"jobs": jobs}
    for name, count, where in (("gpu", 2, device), ("gpu_again", 3, device), ("cpu", usable_cores(), "cpu")):
        with Workers(count, data, device=where) as workers:
            found[name] = train_all(workers, jobs, size.recipe)
        yield found
    same = [one["weights"] == again["weights"] for one, again in zip(found["gpu"], found["gpu_again"], strict=True)]
    differences = [g["accuracy"] - c["accuracy"] for g, c in zip(found["gpu"], found["cpu"], strict=True)]
    mean, error = statistics.fmean(differences), statistics.stdev(differences) / len(differences) ** 0.5
    of_one = [[r["accuracy"] for r in found["cpu"][i : i + len(SEEDS)]] for i in range(0, len(jobs), len(SEEDS))]
    found |= {
        "mean_difference": mean,
        "half_of_the_95_percent_interval": T_95 * error,
        "equal_within_noise": abs(mean) <= T_95 * error,
        "std_of_a_training": statistics.fmean(map(statistics.variance, of_one)) ** 0.5,
        "same_weights_again": sum(same),
    }
    yield found


def throughput(size: Size, device: str) -> Iterator[dict]:
    """Children an hour, by the mean time of a child while all workers train; of this machine's cores; with MPS."""
    data, rows = load_data("MNIST")[0], []
    for what, counts in (("gpu", size.workers), ("cpu", size.cpu_workers), ("gpu, mps", size.mps_workers)):
        where = "cpu" if what == "cpu" else device
        with multi_process_service() if what == "gpu, mps" else nullcontext(True) as there:
            for count in (n or usable_cores() for n in counts if there):
                rounds = -(-2 * count // len(size.panel)) if what == "cpu" else count  # a GPU loads kernels at first
                with Workers(count, data, device=where) as workers:
                    first = [(size.panel[0], seed) for seed in range(2 * count)]
                    train_all(workers, first, replace(size.recipe, epochs=0.01))
                    jobs = [(text, seed) for seed in range(rounds) for text in size.panel]
                    mean = statistics.fmean(row["seconds"] for row in train_all(workers, jobs, size.recipe))
                rows.append({"device": what, "workers": count, "children": len(jobs), "seconds": mean})
                rows[-1]["children_per_hour"] = 3600 * count / mean
                yield {"rows": rows}


@contextmanager
def multi_process_service() -> Iterator[bool]:
    """While NVIDIA's MPS runs, kernels of several processes run at once, not in turns; False where it is missing."""
    control = shutil.which("nvidia-cuda-mps-control")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        variables = dict.fromkeys(("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"), name)
        with patch.dict(os.environ, variables):
            if control:
                subprocess.run([control, "-d"], check=True)
            try:
                yield bool(control)
            finally:
                if control:
                    subprocess.run([control], input="quit\n", text=True, check=True)


# --- one step -----------------------------------------------------------------------------------------------------


def counted(architecture: Architecture, data: Data, recipe: Recipe, steps: int, device: str) -> dict:
    """Launches, time of the kernels and wall time in microseconds of a training of so many steps."""
    n = steps * recipe.batch_size
    few = Data(Images(data.train.pixels[:n], data.train.labels[:n]), Images(*(t[:1] for t in data.held_out)), 10)
    recipe = replace(recipe, epochs=1, best_of=1)
    wall = train_child(architecture, on_device(few, device), recipe, 0).seconds * 1e6  # not slowed down by the profiler
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities) as profiler:
        train_child(architecture, on_device(few, device), recipe, 0)
    kernels, launches, operations = {}, 0, 0
    for event in profiler.events():
        launches += "LaunchKernel" in event.name or "GraphLaunch" in event.name
        operations += event.name.startswith("aten::")
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            kernels[event.name] = kernels.get(event.name, 0) + event.time_range.elapsed_us()
    return {"wall": wall, "launches": launches, "operations": operations, "kernels": kernels}


def one_step(
    data: Data, architecture: Architecture, recipe: Recipe, steps: tuple[int, int], device: str, graph: bool
) -> dict:
    """Runs in a worker process: what the longer of two trainings takes more, a step; as a graph or kernel by kernel."""
    if not graph:
        model.Graphed = lambda update: update  # this process trains nothing else
    counted(architecture, data, recipe, steps[0], device)  # the first training loads the kernels
    short, long = (counted(architecture, data, recipe, n, device) for n in steps)
    more, names = steps[1] - steps[0], long["kernels"]
    step = {key: (long[key] - short[key]) / more for key in ("wall", "launches", "operations")}
    kernels = {name: (names[name] - short["kernels"].get(name, 0)) / more for name in sorted(names, key=names.get)}
    busy = sum(kernels.values())
    step |= {"architecture": str(architecture), "batch_size": recipe.batch_size, "graph": graph}
    step |= {"kernel_microseconds": busy, "busy": busy / step["wall"] if busy else None}
    return step | {"largest_kernels": dict(list(kernels.items())[:-11:-1])}


def paper_data(n: int) -> Data:
    """Pictures of noise, as many and as large as CIFAR-10's: time does not depend on what they show."""
    sizes = {"train": n, "held_out": n // 9}
    images = (Images(torch.randint(256, (m, *SHAPE), dtype=torch.uint8), torch.arange(m) % 10) for m in sizes.values())
    return Data(*images, 10)


def step(size: Size, device: str) -> Iterator[dict]:
    """Where the time of a step goes: of a child of the default search, and of a deep one of the paper's space."""
    rows, network = [], random_networks(size.paper_layers, 1)[0]
    jobs = [(load_data("MNIST")[0], parse_architecture(ONE_OF_THE_PANEL), size.recipe)]
    paper = replace(PAPER_RECIPE, batch_size=size.paper_batch)
    jobs.append((paper_data(max(size.steps) * size.paper_batch), network, paper))
    for (data, architecture, recipe), graph in itertools.product(jobs, (True, False)):
        with Workers(1, data, device=device) as workers:
            work = workers.submit(workers.run, one_step, architecture, recipe, size.steps, device, graph)
            rows.append(work.result())
        yield {"rows": rows}


def paper_epoch(data: Data, architecture: Architecture, size: Size, device: str) -> dict:
    """Runs in a worker process: seconds of an epoch, from two trainings of which one is longer."""
    recipes = [replace(PAPER_RECIPE, batch_size=size.paper_batch, epochs=e, best_of=1) for e in size.paper_epochs]
    train_child(architecture, on_device(data, device), recipes[0], 0)
    short, long = (train_child(architecture, on_device(data, device), recipe, 0).seconds for recipe in recipes)
    memory = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {"seconds_an_epoch": (long - short) / (size.paper_epochs[1] - size.paper_epochs[0]), "memory": memory}


def paper(size: Size, device: str) -> Iterator[dict]:
    """The paper's recipe for one child of its space."""
    network = random_networks(size.paper_layers, 1)[0]
    found = {"architecture": str(network), "flops": forward_flops(network), "images": size.paper_images}
    with Workers(1, paper_data(size.paper_images), device=device) as workers:
        yield found | workers.submit(workers.run, paper_epoch, network, size, device).result()


# --- memory -------------------------------------------------------------------------------------------------------


def run_out(data: Data, device: str) -> None:
    """Runs in a worker process: a training for which there is not enough memory."""
    if device == "cpu":
        torch.empty(2**60, dtype=torch.uint8)
    torch.cuda.set_per_process_memory_fraction(0.01)
    train_child(parse_architecture("k3f32p1-k3f32p1"), on_device(data, device), Recipe(batch_size=16384), 0)


def memory_held(data: Data, device: str) -> int:
    """Runs in a worker process: bytes that PyTorch holds on the GPU; from now on it may take all."""
    if device == "cpu":
        return 0
    torch.cuda.set_per_process_memory_fraction(1.0)
    return torch.cuda.memory_reserved()


def memory(size: Size, device: str) -> Iterator[dict]:
    """A child for which memory is short fails with one line, gives it back, and the next one is trained as ever."""
    with Workers(1, load_data("MNIST")[0], device=device) as workers:
        error = workers.submit(workers.run, run_out, device).exception()
        found = {"is_a_failed_child": isinstance(error, TaskFailed), "error": str(error)}
        found["bytes_held_after"] = workers.submit(workers.run, memory_held, device).result()
        found["next_child"] = train_all(workers, [(size.panel[0], 0)], size.recipe)[0]
    yield found


# --- the whole ----------------------------------------------------------------------------------------------------

SECTIONS = {  # seconds that each may take, the most important ones first
    small_commands: 100, default_commands: 100, memory: 25, step: 100, accuracy: 60, throughput: 160, paper: 50
}  # fmt: skip


def expire(*_: object) -> None:
    raise TimeoutError("took too long")


def measure_all(size: Size, device: str, result: dict, file: Path) -> None:
    """All sections, one after the other, each with what it has found written at once."""
    started = time.perf_counter()
    signal.signal(signal.SIGALRM, expire)
    for section, limit in SECTIONS.items():
        name, begun = section.__name__, time.perf_counter()
        limit = max(0, min(size.patience * limit, started + 60 * size.patience * MINUTES - begun))
        print(f"{name} (at most {limit:.0f} s)", file=sys.stderr, flush=True)
        try:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, limit))
            for found in section(size, device):
                result[name] = found
                write_json(file, result)
        except Exception as error:
            result[name] = result.get(name, {}) | {"stopped": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        result["seconds"][name] = time.perf_counter() - begun
        write_json(file, result)


def page(result: dict) -> Iterator[str]:
    """The lines of the page; what a section did not get to is missing."""
    machine, found = result["machine"], {section.__name__: result.get(section.__name__, {}) for section in SECTIONS}
    what = "REHEARSAL, NO RESULT: " if result["rehearsal"] else ""
    yield f"{what}{machine.get('gpu', 'no GPU')}, {machine['cpu']}, {machine['cores']} cores, {result['versions']}"
    for name in found:
        if "stopped" in found[name]:
            yield f"{name} stopped: {found[name]['stopped']}"
    for row in [*found["small_commands"].get("rows", ()), *found["default_commands"].get("rows", ())]:
        said = row.get("error") or f"{row['architecture']} on {row['device']}, " + (
            f"top1 {row['top1_mean']:.2%} ± {100 * row['top1_std']:.2f}"
            if "top1_mean" in row
            else f"{row['val_accuracy']:.2%}, {row['children']} children, {row['failed']} failed"
        )
        yield f"{row['seconds']:6.1f} s  {row['command']}: {said}"
    if (same := found["small_commands"].get("one_and_three_workers_give_the_same_ledger")) is not None:
        yield f"one and three workers give the same ledger: {same}"
    with suppress(KeyError):
        line = "GPU - CPU: {mean_difference:+.3%} ± {half_of_the_95_percent_interval:.3%} (95 %), equal within noise: {equal_within_noise}; a training's std {std_of_a_training:.3%}"
        yield line.format(**found["accuracy"])
        yield "the same weights again on the GPU: {same_weights_again} of {}".format(
            len(found["accuracy"]["jobs"]), **found["accuracy"]
        )
    for row in found["throughput"].get("rows", ()):
        yield "{children_per_hour:9,.0f} children an hour, {workers:>2} workers ({device}), {seconds:.2f} s each".format(
            **row
        )
    for row in found["step"].get("rows", ()):
        busy = "?" if row["busy"] is None else f"{row['busy']:.1%}"
        how = "as a graph" if row["graph"] else "kernel by kernel"
        yield "a step of {batch_size} {}: {wall:,.0f} us, {launches:.0f} launches, {operations:.0f} operations, GPU busy {}: {architecture:.60}".format(
            how, busy, **row
        )
        for name, microseconds in list(row["largest_kernels"].items())[:3]:
            yield f"{microseconds:9.1f} us  {name[:90]}"
    with suppress(KeyError):
        line = "the paper's recipe: {seconds_an_epoch:.2f} s an epoch of {images:,} images, {flops:,} FLOPs an image, memory {memory}"
        yield line.format(**found["paper"])
    with suppress(KeyError):
        line = "out of memory is a failed child: {is_a_failed_child} ({error}); {bytes_held_after:,} bytes held after"
        yield line.format(**found["memory"])


def children_table() -> str:
    """Children of the default search an hour, on a GPU and on the processor beside it."""
    rows = sorted(read("gpu.json")["throughput"]["rows"], key=lambda row: row["device"])
    two = next(row["children_per_hour"] for row in rows if row["device"] == "cpu" and row["workers"] == 2)
    cells = []
    for row in rows:
        where = {"gpu": "GPU", "gpu, mps": "GPU, with MPS", "cpu": "CPU"}[row["device"]]
        rate = row["children_per_hour"]
        cells.append([where, row["workers"], f"{rate:,.0f}", f"{rate / two:.1f}"])
    return table(["", "workers", "children an hour", "times two cores"], cells)


def steps_table() -> str:
    """What a training's step takes on a GPU, as one graph and kernel by kernel."""
    rows = read("gpu.json")["step"]["rows"]
    names = ("the default search's `k5f16p0-k5f32p1`", "15 layers of the paper's space")
    cells = []
    for name, graph, each in zip(names, rows[::2], rows[1::2], strict=True):
        as_graph, one_by_one = (f"{row['wall'] / 1000:.2f} ms" for row in (graph, each))
        busy = (f"{row['busy']:.0%}" for row in (each, graph))
        cells.append([name, graph["batch_size"], f"{each['launches']:.0f}", one_by_one, as_graph, *busy])
    ways = ["kernel by kernel", "as a graph"]
    return table(["a step of", "images", "kernels", *ways, *(f"GPU busy, {way}" for way in ways)], cells)


TABLES = {"gpu_children": children_table, "gpu_steps": steps_table}


@input_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearsal", action="store_true", help="the same in small, to see that all of it runs")
    device = choose_device(use_cuda=True)
    rehearsal = parser.parse_args().rehearsal or device == "cpu"
    file = ROOT / "runs" / "gpu-rehearsal.json" if rehearsal else RESULTS / "gpu.json"
    file.parent.mkdir(exist_ok=True)
    started = datetime.now().isoformat(timespec="seconds")
    result = {"rehearsal": rehearsal, "device": device, "command": "python -m benchmarks.gpu", "started": started}
    result |= environment(device) | {"seconds": {}}
    measure_all(REHEARSAL if rehearsal else Size(), device, result, file)
    print("\n".join(page(json.loads(file.read_text()))))
    print(f"written to {file}")
    found = [result[section.__name__] for section in SECTIONS]
    sys.exit(any("stopped" in part or any("error" in row for row in part.get("rows", ())) for part in found))


if __name__ == "__main__":
    main()
