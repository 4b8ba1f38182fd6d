"""What the benchmarks share: a panel of architectures, the data, and one child measured on validation and test images."""

import csv
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from datasets import Data, Images, evaluation_data, in_shared_memory, search_data
from model import Recipe, measure, train_child
from search_space import Architecture, parse_architecture
from utils import ROOT, InputError, usable_cores
from workers import Workers

RESULTS = ROOT / "results"
PANEL = (  # of the 729: the smallest, the largest, and a spread between
    "k3f8p0-k3f8p0",
    "k3f8p2-k5f16p1",
    "k3f16p1-k3f32p2",
    "k3f32p0-k7f8p1",
    "k5f8p1-k7f16p2",
    "k5f16p0-k5f32p1",
    "k5f16p2-k3f16p0",
    "k5f32p1-k3f32p0",
    "k7f8p0-k3f8p2",
    "k7f16p1-k7f32p0",
    "k7f32p0-k5f16p1",
    "k7f32p2-k7f32p2",
)


CHILDREN_PER_UPDATE = 8  # the paper's, for many workers
PENDING_PER_WORKER = 2.5  # pending evaluations for each worker, which keep most of them busy (scaling.py)


@contextmanager
def input_errors() -> Iterator[None]:
    """What the user can put right is one line and exit code 2."""
    try:
        yield
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def shown(method: str) -> str:
    """A method's name on pages and pictures; in the files of results/ pending evaluations are called "under way"."""
    return method.replace("under way", "pending")


def recommended_lag(num_workers: int) -> int:
    """The update lag that keeps so many workers busy."""
    return max(1, math.ceil(PENDING_PER_WORKER * num_workers / CHILDREN_PER_UPDATE) - 1)


def load_data(dataset: str) -> tuple[Data, Images]:
    """What a search on a data set sees, and the test images beside."""
    data = in_shared_memory(search_data(dataset, ROOT / "data"))
    return data, evaluation_data(dataset, ROOT / "data").held_out


def train_and_test(
    shared: tuple[Data, Images], network: str | Architecture | Callable, recipe: Recipe, seed: int, both_sides=False
) -> dict:
    """Train a child as a search does, and measure it on the test images beside; seconds of the core, not of the clock.

    Runs in a worker process. The network may be anything that `train_child` takes.
    """
    data, test = shared
    started = time.process_time()
    network = parse_architecture(network) if isinstance(network, str) else network
    trained = train_child(network, data, recipe, seed)
    seconds = time.process_time() - started  # other work does not count
    accuracy = measure(trained.child, data.held_out, True)[0] if both_sides else trained.accuracy
    tested = measure(trained.child, test, both_sides)[0]
    return {"val_accuracy": accuracy, "test_accuracy": tested, "seconds": seconds}


def train_missing(
    file: Path, columns: Sequence[str], dataset: str, jobs: dict[tuple, tuple], data: tuple[Data, Images] | None = None
) -> None:
    """Run `train_and_test` on each job's arguments; a row, its key and the numbers, is written when each has ended."""
    with Workers(usable_cores(), data or load_data(dataset)) as workers, file.open("a", newline="") as rows:
        writer = csv.writer(rows, lineterminator="\n")
        if not rows.tell():
            writer.writerow(columns)
        running = {workers.submit(workers.run, train_and_test, *job): key for key, job in jobs.items()}
        for future in tqdm(as_completed(running), total=len(running), unit="training", desc=dataset):
            row = future.result()
            numbers = (round(row[column], 6) for column in ("val_accuracy", "test_accuracy", "seconds"))
            writer.writerow([*running[future], *numbers, torch.backends.cpu.get_cpu_capability()])
            rows.flush()


def read_rows(file: Path, *key: str) -> dict[tuple, dict]:
    """The rows of such a file by the columns of `key` and the seed."""
    rows = csv.DictReader(file.open()) if file.exists() else ()
    return {(*(row[column] for column in key), int(row["seed"])): row for row in rows}


# --- tables of pages ----------------------------------------------------------------------------------------------


def read(*parts: str) -> dict:
    """A JSON file in results/."""
    return json.loads(RESULTS.joinpath(*parts).read_text())


def table(header: Sequence, rows: Sequence[Sequence]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (header, ["---"] * len(header), *rows))


def interval(row: dict, key: str = "truth", digits: int = 3) -> str:
    """A mean of accuracies in %, and half of its 95 % interval."""
    return f"{100 * row[key]:.{digits}f} ± {100 * row[f'{key}_ci']:.{digits}f}"


def spread(values: list[float]) -> str:
    """Mean ± standard deviation of fractions, in %."""
    return f"{100 * statistics.fmean(values):.2f}" + (f" ± {100 * statistics.stdev(values):.2f}" if values[1:] else "")
