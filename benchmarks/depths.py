"""Are three or four layers better than two in the same time? Searches of each depth, and their picks trained alike.

python -m benchmarks.depths      (goes on where it stopped)

Each pick is trained for the seconds that 8 epochs of the first two-layer pick take, on the images of a search, and
measured on the validation images; the test images stand beside. How long a step takes is measured first: let nothing
else run then. Writes results/depths.csv and its summary.
"""

import statistics
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

from benchmarks.common import RESULTS, input_errors, load_data, read, read_rows, table, train_missing
from evaluation import EVALUATION_RECIPE
from references import parameters_of, seconds_of_a_step
from search_space import parse_architecture
from utils import ROOT, child_seed, environment, read_json, write_json

FILE = RESULTS / "depths.csv"
COLUMNS = (
    "layers", "architecture", "parameters", "search_seconds", "epochs", "seed",
    "val_accuracy", "test_accuracy", "seconds", "instruction_set",
)  # fmt: skip
DATASET, DEPTHS, SEEDS = "FashionMNIST", (2, 3, 4), 3


def search(layers: int, seed: int) -> Path:
    """A search as a reader would start it, its run folder."""
    folder = ROOT / "runs" / f"{DATASET.lower()}-{layers}-layers-seed{seed}"
    flags = ("--dataset", DATASET, "--num_layers", str(layers), "--seed", str(seed), "--run_dir", str(folder))
    subprocess.run([sys.executable, "train.py", *flags], cwd=ROOT, check=True)
    return folder


@input_errors()
def train() -> None:
    """Train the picks that the file lacks, all of them for the time of 8 epochs of the first one."""
    done, data, recipe = read_rows(FILE, "layers"), load_data(DATASET)[0], replace(EVALUATION_RECIPE, flip=True)
    missing = [key for key in product(DEPTHS, range(SEEDS)) if (str(key[0]), key[1]) not in done]
    folders = {key: search(*key) for key in ((DEPTHS[0], 0), *missing) if missing}
    texts = {key: read_json(folder / "best.json")["architecture"] for key, folder in folders.items()}
    networks = {text: parse_architecture(text) for text in texts.values()}
    step = {text: seconds_of_a_step(network, data, recipe, "cpu") for text, network in networks.items()}
    jobs = {}
    for layers, seed in missing:
        text = texts[layers, seed]
        epochs = round(recipe.epochs * step[texts[DEPTHS[0], 0]] / step[text], 2)
        searched = round(read_json(folders[layers, seed] / "time.json")["workers"])
        key = (layers, text, parameters_of(networks[text], data), searched, epochs, seed)
        jobs[key] = (text, replace(recipe, epochs=epochs), child_seed(seed, text), True)
    if jobs:
        train_missing(FILE, COLUMNS, DATASET, jobs)


def summarize() -> dict:
    """Means and standard deviations over the searches of each depth."""
    rows, result = read_rows(FILE, "layers"), {}
    for layers in DEPTHS:
        some = [row for key, row in rows.items() if key[0] == str(layers)]
        result[str(layers)] = {"n": len(some)}
        for column in ("parameters", "search_seconds", "epochs", "val_accuracy", "test_accuracy", "seconds"):
            values = [float(row[column]) for row in some]
            result[str(layers)] |= {column: statistics.fmean(values), f"{column}_std": statistics.stdev(values)}
    return result


def depths_table() -> str:
    """Searches of two, three and four layers, whose picks are trained in the same time; ± over searches."""
    rows = []
    for layers, of in read("depths.json").items():
        if layers.isdigit():
            accuracies = (
                f"{100 * of[part]:.2f} ± {100 * of[f'{part}_std']:.2f}" for part in ("val_accuracy", "test_accuracy")
            )
            sizes = f"{of['search_seconds'] / 60:.1f}", f"{of['parameters']:,.0f}", f"{of['epochs']:.1f}"
            rows.append([layers, of["n"], *sizes, *accuracies])
    header = ["layers", "searches", "core-minutes of a search", "parameters", "epochs", "validation", "test"]
    return table(header, rows)


TABLES = {"depths": depths_table}

if __name__ == "__main__":
    train()
    write_json(FILE.with_suffix(".json"), summarize() | {"command": "python -m benchmarks.depths"} | environment())
