"""How a network that was found is best trained: accuracies by length, augmentation and depth.

python -m benchmarks.final_training      (goes on where it stopped)

Each training is on the images of a search. What `--mode evaluate` does was chosen on the validation images, and the test
images stand beside. Seconds are those of the core. Writes results/final_training.csv and its summary.
"""

import csv
import statistics
from concurrent.futures import as_completed
from dataclasses import replace

import torch
from tqdm import tqdm

from benchmarks.common import RESULTS, load_data, train_and_test
from evaluation import EVALUATION, SAME_IN_A_MIRROR
from model import Recipe
from utils import child_seed, environment, usable_cores, write_json
from workers import Workers

FILE = RESULTS / "final_training.csv"
COLUMNS = ("dataset", "change", "architecture", "seed", "val_accuracy", "test_accuracy", "seconds", "instruction_set")
SEEDS = 2
TWO, THREE = "k3f32p2-k5f32p1", "k3f32p1-k3f32p1-k3f32p1"
DEPTHS = {"3 layers": THREE, "4 layers": f"{THREE}-k3f32p1", "5 layers": f"{THREE}-k3f32p1-k3f32p1"}


def trainings(dataset: str) -> dict[str, tuple[str, Recipe, bool]]:
    """What is tried on a data set: a network, a recipe, and whether it is judged from both sides."""
    mirrored = dataset in SAME_IN_A_MIRROR
    base = replace(EVALUATION, flip=mirrored)
    tried = {f"{n} epochs": (TWO, replace(base, epochs=n)) for n in (1, 2, 4, 8, 16)}
    tried |= {"no shifts": (TWO, replace(base, shift=0)), "shifts by 2": (TWO, replace(base, shift=2))}
    tried["no label smoothing"] = (TWO, replace(base, label_smoothing=0))
    tried["half the learning rates"] = (TWO, replace(base, lr=base.lr / 2, filter_lr=base.filter_lr / 2))
    tried |= {f"{depth}, {n} epochs": (a, replace(base, epochs=n)) for depth, a in DEPTHS.items() for n in (8, 16)}
    tried = {name: (*training, mirrored) for name, training in tried.items()}
    if mirrored:
        tried["not mirrored"] = (TWO, replace(base, flip=False), False)
        tried["judged from one side"] = (TWO, base, False)
    return tried


def train() -> None:
    """Train what the file lacks, the first seeds first; each row is written as it ends."""
    done = read()
    for dataset in ("FashionMNIST", "MNIST"):
        tried = trainings(dataset)
        jobs = [(name, seed) for seed in range(SEEDS) for name in tried if (dataset, name, seed) not in done]
        if not jobs:
            continue
        new = not FILE.exists()
        with Workers(usable_cores(), load_data(dataset)) as workers, FILE.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(COLUMNS)
            running = {
                workers.submit(workers.run, train_and_test, *tried[name][:2], child_seed(seed, name), tried[name][2]): (
                    name,
                    seed,
                )
                for name, seed in jobs
            }
            for future in tqdm(as_completed(running), total=len(running), unit="training", desc=dataset):
                name, seed = running[future]
                numbers = [round(future.result()[column], 6) for column in COLUMNS[4:7]]
                capability = torch.backends.cpu.get_cpu_capability()
                writer.writerow([dataset, name, tried[name][0], seed, *numbers, capability])
                file.flush()


def read() -> dict[tuple[str, str, int], dict]:
    """The rows of the file, by data set, change and seed."""
    rows = csv.DictReader(FILE.open()) if FILE.exists() else ()
    return {(row["dataset"], row["change"], int(row["seed"])): row for row in rows}


def summarize() -> dict:
    """Mean accuracies and seconds of each kind of training, by data set."""
    rows, result = read(), {}
    for dataset, change, _ in rows:
        some = [row for key, row in rows.items() if key[:2] == (dataset, change)]
        means = {column: statistics.fmean(float(row[column]) for row in some) for column in COLUMNS[4:7]}
        result.setdefault(dataset, {})[change] = {"n": len(some), "architecture": some[0]["architecture"]} | means
    return result


if __name__ == "__main__":
    train()
    summary = summarize()
    write_json(FILE.with_suffix(".json"), summary | {"command": "python -m benchmarks.final_training"} | environment())
    for dataset, changes in summary.items():
        for change, row in changes.items():
            print(
                f"{dataset:<14} {change:<26} validation {row['val_accuracy']:.2%}   test {row['test_accuracy']:.2%}"
                f"   {row['seconds']:6.0f} s   n = {row['n']}"
            )
