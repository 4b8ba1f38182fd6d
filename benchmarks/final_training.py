"""How a network that was found is best trained: accuracies by length, augmentation and depth.

python -m benchmarks.final_training      (goes on where it stopped)

Each training is on the images of a search, and measured on the validation images; the test images stand beside. Seconds
are those of the core. Writes results/final_training.csv and its summary.
"""

import statistics
from collections.abc import Callable
from dataclasses import replace
from itertools import product

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.common import RESULTS, input_errors, read, read_rows, table, train_missing
from datasets import SAME_IN_A_MIRROR
from evaluation import EVALUATION_RECIPE
from model import Child, Recipe
from search_space import Architecture, parse_architecture
from utils import child_seed, environment, write_json

FILE = RESULTS / "final_training.csv"
COLUMNS = ("dataset", "change", "architecture", "seed", "val_accuracy", "test_accuracy", "seconds", "instruction_set")
DATASETS = ("FashionMNIST", "MNIST")
SEEDS = 2
EPOCHS = {"FashionMNIST": (1, 2, 4, 8, 16, 32, 80), "MNIST": (1, 2, 4, 8, 16)}
TWO, THREE = "k3f32p2-k5f32p1", "k3f32p1-k3f32p1-k3f32p1"
DEPTHS = {"3 layers": THREE, "4 layers": f"{THREE}-k3f32p1"}


class WithAverage(nn.Module):
    """A child that is judged with the moving average of its weights; on a CPU only."""

    def __init__(self, child: Child) -> None:
        super().__init__()
        self.child = child
        self.average = AveragedModel(child, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=True)

    @property
    def convs(self) -> nn.ModuleList:
        return self.child.convs

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return self.average(images)
        self.average.update_parameters(self.child)
        return self.child(images)


def with_average(image_shape: tuple[int, int, int], num_classes: int) -> WithAverage:
    return WithAverage(Child(parse_architecture(TWO), image_shape, num_classes))


def trainings(dataset: str) -> dict[str, tuple[str | Architecture | Callable, Recipe, bool]]:
    """What is tried on a data set: a network, a recipe, and whether it is judged from both sides."""
    mirrored = dataset in SAME_IN_A_MIRROR
    base = replace(EVALUATION_RECIPE, flip=mirrored)
    tried = {epochs(n): (TWO, replace(base, epochs=n)) for n in EPOCHS[dataset]}
    tried |= {"no shifts": (TWO, replace(base, shift=0)), "shifts by 2": (TWO, replace(base, shift=2))}
    tried["no label smoothing"] = (TWO, replace(base, label_smoothing=0))
    tried["half the learning rates"] = (TWO, replace(base, lr=base.lr / 2, filter_lr=base.filter_lr / 2))
    tried["half the filters"] = (TWO.replace("f32", "f16"), base)
    tried |= {
        f"{depth}, {n} epochs": (text, replace(base, epochs=n)) for depth, text in DEPTHS.items() for n in (8, 16)
    }
    two = parse_architecture(TWO)
    tried["twice the hidden units"] = (replace(two, hidden=2 * two.hidden), base)
    tried["global average pooling instead"] = (replace(two, hidden=None), base)
    tried["averaged weights"] = (with_average, base)
    tried = {name: (*training, mirrored) for name, training in tried.items()}
    if mirrored:
        tried["not mirrored, judged from one side"] = (TWO, replace(base, flip=False), False)
        tried["judged from one side"] = (TWO, base, False)
    return tried


def described(network: str | Architecture | Callable) -> str:
    return TWO if callable(network) else str(network)


def epochs(n: int) -> str:
    return "1 epoch" if n == 1 else f"{n} epochs"


@input_errors()
def train() -> None:
    """Train what the file lacks, the first seeds first; those of one network have the same random numbers."""
    done = read_rows(FILE, "dataset", "change")
    for seed, dataset in product(range(SEEDS), DATASETS):
        jobs = {
            (dataset, change, described(network), seed): (
                network,
                recipe,
                child_seed(seed, described(network)),
                both_sides,
            )
            for change, (network, recipe, both_sides) in trainings(dataset).items()
            if (dataset, change, seed) not in done
        }
        if jobs:
            train_missing(FILE, COLUMNS, dataset, jobs)


def summarize() -> dict:
    """Mean accuracies and seconds of each kind of training, by data set."""
    rows, result = read_rows(FILE, "dataset", "change"), {}
    for dataset in DATASETS:
        result[dataset] = {}
        for change in trainings(dataset):
            some = [row for key, row in rows.items() if key[:2] == (dataset, change)]
            if some:
                means = {column: statistics.fmean(float(row[column]) for row in some) for column in COLUMNS[4:7]}
                result[dataset][change] = {"n": len(some), "architecture": some[0]["architecture"]} | means
    return result


def changes_table() -> str:
    """How a network is best trained in the end: accuracies on validation and test images, by what is changed."""
    summary = read("final_training.json")
    rows = []
    for change in summary["FashionMNIST"]:
        of = [summary[dataset].get(change) for dataset in DATASETS]
        cells = [f"{100 * row[f'{part}_accuracy']:.2f}" if row else "" for row in of for part in ("val", "test")]
        rows.append([change, *cells, f"{of[0]['seconds'] / 60:.1f}"])
    header = [f"{name}, {part}" for name in ("Fashion-MNIST", "MNIST") for part in ("validation", "test")]
    return table(["", *header, "core-minutes, Fashion-MNIST"], rows)


def epochs_table() -> str:
    """What --eval_epochs brings: minutes of four trainings on two cores, and test accuracies."""
    summary = read("final_training.json")
    rows = []
    for num_epochs in EPOCHS["FashionMNIST"]:
        tested = [summary[dataset].get(epochs(num_epochs)) for dataset in DATASETS]
        cells = [f"{100 * row['test_accuracy']:.2f}" if row else "" for row in tested]
        minutes = 4 / 2 * tested[0]["seconds"] / 60
        rows.append([num_epochs, f"{minutes:.1f}", *cells])
    return table(["`--eval_epochs`", "minutes", "Fashion-MNIST, test", "MNIST, test"], rows)


TABLES = {"final": changes_table, "epochs": epochs_table}

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
