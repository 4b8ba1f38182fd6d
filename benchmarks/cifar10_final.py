"""How is the network that a search on CIFAR-10 returned best trained in the end? Chosen on validation images.

    python -m benchmarks.cifar10_final      about two hours on two cores; goes on where it stopped

The network is that of results/cifar10-paper. Each training is on the 45,000 images of a search, and its accuracy is the
mean over both sides of the 5,000 validation images; the accuracy on the test images stands beside, and chooses nothing.
Writes results/cifar10_final.csv, a row for each training.
"""

import statistics
from dataclasses import replace

from benchmarks.common import RESULTS, input_errors, read, read_rows, spread, table, train_missing
from evaluation import EVALUATION_RECIPE
from search_space import parse_architecture
from utils import child_seed

FILE = RESULTS / "cifar10_final.csv"
COLUMNS = ("change", "architecture", "seed", "val_accuracy", "test_accuracy", "seconds", "instruction_set")
SEEDS = (0, 1)
BASE = replace(EVALUATION_RECIPE, epochs=16, flip=True, precision="bfloat16")
CHANGES = {
    "shifts by 1": BASE,  # the program's
    "shifts by 2": replace(BASE, shift=2),
    "shifts by 4": replace(BASE, shift=4),  # the paper's
    "half the learning rates": replace(BASE, lr=BASE.lr / 2, filter_lr=BASE.filter_lr / 2),
    "twice the learning rates": replace(BASE, lr=2 * BASE.lr, filter_lr=2 * BASE.filter_lr),
    "no label smoothing": replace(BASE, label_smoothing=0.0),
    "40 more filters, shifts by 1": BASE,
    "40 more filters, shifts by 2": replace(BASE, shift=2),
}
EXTRA_FILTERS = {"40 more filters, shifts by 1": 40, "40 more filters, shifts by 2": 40}


def final_table() -> str:
    """How the best network is best trained: accuracies on validation and test images in %, by what is changed."""
    trained = list(read_rows(FILE, "change", "architecture").values())
    rows = []
    for change in CHANGES:
        some = [row for row in trained if row["change"] == change]
        if some:
            cells = [spread([float(row[f"{part}_accuracy"]) for row in some]) for part in ("val", "test")]
            minutes = statistics.fmean(float(row["seconds"]) for row in some) / 60
            rows.append([change, len(some), *cells, f"{minutes:.0f}"])
    return table(["", "n", "validation", "test", "core-minutes"], rows)


TABLES = {"cifar10_final": final_table}


@input_errors()
def main() -> None:
    text = read("cifar10-paper", "best.json")["architecture"]
    done = read_rows(FILE, "change", "architecture")
    jobs = {}
    for seed in SEEDS:
        for change, recipe in CHANGES.items():
            network = parse_architecture(text).widened(EXTRA_FILTERS.get(change, 0))
            key = (change, text, seed)
            if key not in done:
                jobs[key] = (network, recipe, child_seed(seed, text), True)
    if jobs:
        train_missing(FILE, COLUMNS, "CIFAR10", jobs)
    for (change, _, seed), row in read_rows(FILE, "change", "architecture").items():
        print(f"{change:<30} seed {seed}   validation {float(row['val_accuracy']):.2%}   {float(row['seconds']):.0f} s")


if __name__ == "__main__":
    main()
