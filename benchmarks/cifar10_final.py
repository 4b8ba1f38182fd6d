"""How is the network that a search on CIFAR-10 returned best trained in the end? Chosen on validation images.

    python -m benchmarks.cifar10_final      about two hours on two cores; goes on where it stopped

The network is that of results/cifar10-paper. Each training is on the 45,000 images of a search, and measured on its 5,000
validation images; a prediction is the mean of those for an image and its mirror image. The accuracy on the test images stands
beside, and chooses nothing.
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
MORE_FILTERS = 40  # the paper's last step
CHANGES = {  # how it is trained, and how many filters more it has in each layer
    "unchanged: shifts by 1": (BASE, 0),
    "shifts by 2": (replace(BASE, shift=2), 0),
    "shifts by 4": (replace(BASE, shift=4), 0),  # the paper's
    "half the learning rates": (replace(BASE, lr=BASE.lr / 2, filter_lr=BASE.filter_lr / 2), 0),
    "twice the learning rates": (replace(BASE, lr=2 * BASE.lr, filter_lr=2 * BASE.filter_lr), 0),
    "no label smoothing": (replace(BASE, label_smoothing=0.0), 0),
    "40 more filters": (BASE, MORE_FILTERS),
    "40 more filters, shifts by 2": (replace(BASE, shift=2), MORE_FILTERS),
}


def network() -> str:
    """The text form of the network that is trained."""
    return read("cifar10-paper", "best.json")["architecture"]


def final_table() -> str:
    """How the best network is best trained: accuracies on validation and test images in %, by what is changed."""
    trained = [row for row in read_rows(FILE, "change", "architecture").values() if row["architecture"] == network()]
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
    text, done = network(), read_rows(FILE, "change", "architecture")
    jobs = {}
    for seed in SEEDS:
        for change, (recipe, extra_filters) in CHANGES.items():
            if (change, text, seed) not in done:
                widened = parse_architecture(text).widened(extra_filters)
                jobs[change, text, seed] = (widened, recipe, child_seed(seed, text), True)
    if jobs:
        train_missing(FILE, COLUMNS, "CIFAR10", jobs)
    for (change, _, seed), row in read_rows(FILE, "change", "architecture").items():
        print(f"{change:<30} seed {seed}   validation {float(row['val_accuracy']):.2%}   {float(row['seconds']):.0f} s")


if __name__ == "__main__":
    main()
