"""How must a child be trained on CIFAR-10? 24 networks of the paper's space, trained for eight epochs, judge rewards.

    python -m benchmarks.cifar10_rewards      about three hours on two cores; goes on where it stopped

The networks are drawn uniformly from those of six layers with two max-poolings and at most 60 million FLOPs an image, as
in the searches of docs/cifar10.md. Everything is trained on the 45,000 images of a search. As in
`benchmarks.reward_fidelity`, a reward is measured on the validation images where the judge is measured on the test images
and the other way round, so that the luck of 5,000 images does not count as knowledge. Trainings with one seed share their
first weights and the order of images, so the judge of a reward is the training with another seed.

A longer training says more of a network, but leaves time for fewer networks. What a recipe is worth in the time of a
search is estimated for random search: if rewards and judge are normal with correlation r, the best of n rewards belongs to a
network that is r times the expected maximum of n standard normal numbers above the mean, in standard deviations.

Writes results/cifar10_rewards.csv (a row for each training) and results/cifar10_rewards.json (correlations).
"""

from dataclasses import asdict, replace

import numpy as np
import torch

from benchmarks.common import RESULTS, input_errors, load_data, read, read_rows, table, train_missing
from benchmarks.reward_fidelity import IMAGES, fidelity, variance
from model import Recipe
from search_space import PaperSpace
from settings import within_limits
from utils import child_seed, environment, write_json

FILE = RESULTS / "cifar10_rewards.csv"
COLUMNS = ("recipe", "architecture", "seed", "val_accuracy", "test_accuracy", "seconds", "instruction_set")
SPACE = PaperSpace(6, pooling=2)
LIMITS = {"max_flops": 60_000_000}
NETWORKS = 24
SEEDS = (0, 1)
JUDGE = "judge"
DEFAULT = "9,000 images"  # a fifth of an epoch, the program's default
CHILDREN = 120  # of a search with the default
BASE = Recipe(precision="bfloat16")
RECIPES = {
    f"{images:,} images": replace(BASE, epochs=images / 45_000) for images in (3_000, 4_500, 9_000, 18_000, 45_000)
} | {
    "9,000 images, mirrored": replace(BASE, epochs=0.2, flip=True),
    "9,000 images, half the rates": replace(BASE, epochs=0.2, lr=BASE.lr / 2, filter_lr=BASE.filter_lr / 2),
    "9,000 images, twice the rates": replace(BASE, epochs=0.2, lr=2 * BASE.lr, filter_lr=2 * BASE.filter_lr),
    "9,000 images, float32": replace(BASE, epochs=0.2, precision="float32"),
    "45,000 images, mirrored": replace(BASE, epochs=1.0, flip=True),
    JUDGE: replace(BASE, epochs=8.0, shift=2, flip=True),  # no candidate, so its settings need not be the best
}


def panel(data) -> list[str]:
    """The text forms of the networks: the first of a fixed random sequence that are within the limits."""
    generator, found = torch.Generator().manual_seed(0), []
    while len(found) < NETWORKS:
        actions = [torch.randint(len(choices), (), generator=generator).item() for *_, choices in SPACE.tokens]
        architecture = SPACE.decode(actions)
        if within_limits(architecture, data, LIMITS):
            found.append(str(architecture))
    return found


def summarize(rows: dict[tuple, dict], networks: list[str]) -> dict:
    """For each recipe its time, its accuracy, and its rank correlation with the judge, with a 95 % interval.

    Of each network all seeds count that every network has. The best recipe is that of these networks, not chosen anew in
    each resample: a recipe is rather called below it.
    """
    seeds = {name: [s for s in SEEDS if all((name, a, s) in rows for a in networks)] for name in RECIPES}
    complete = [name for name in RECIPES if seeds[name]]
    value = {
        (name, kind): np.array([[float(rows[name, a, s][kind]) for s in seeds[name]] for a in networks])
        for name in complete
        for kind in ("val_accuracy", "test_accuracy", "seconds")
    }
    result = {"networks": len(networks), "judge": {"trainings": len(seeds[JUDGE])}, "recipes": {}}
    if len(seeds[JUDGE]) < 2:
        return result
    result["judge"] |= accuracy_and_noise(value[JUDGE, "val_accuracy"])

    random, everything = np.random.default_rng(0), np.arange(len(networks))
    drawn = np.stack([everything, *(random.choice(everything, len(networks)) for _ in range(2000))])

    def correlations(name: str, some: list[int]) -> np.ndarray:
        """Mean rank correlation of a recipe's rewards of some seeds, each with another seed's judge on other images."""
        return np.mean(
            [
                fidelity(value[name, images][:, [i]], judge_without(seed, others), drawn)
                for images, others in IMAGES["other"]
                for i, seed in enumerate(seeds[name])
                if seed in some
            ],
            0,
        )

    def judge_without(seed: int, images: str) -> np.ndarray:
        """The judge's accuracies (networks,) without its training of this seed, which begins with the same weights."""
        return value[JUDGE, images][:, [s != seed for s in seeds[JUDGE]]].mean(1)

    found = {name: correlations(name, seeds[name]) for name in complete if name != JUDGE}
    leader = max(found, key=lambda name: found[name][0])
    # the first trainings of a run include a process' start: the median does not
    seconds = {name: float(np.median(value[name, "seconds"][:, -1])) for name in found}
    for name, resampled in found.items():
        row = {"recipe": asdict(RECIPES[name]), "trainings": len(seeds[name]), "seconds": seconds[name]}
        both = [seed for seed in seeds[name] if seed in seeds[DEFAULT]]
        mine, default = correlations(name, both), correlations(DEFAULT, both)
        row["above_default_ci"] = interval_of(mine - default)
        children = CHILDREN * seconds[DEFAULT] / seconds[name]
        factor = expected_maximum(children)
        row["in_equal_time"] = {
            "children": children,
            "expected_best": float(resampled[0]) * factor,
            "above_default_ci": interval_of(mine * factor - default * expected_maximum(CHILDREN)),
        }
        row |= accuracy_and_noise(value[name, "val_accuracy"])
        row["correlation"] = float(resampled[0])
        row["correlation_ci"] = interval_of(resampled)
        row["is_best"] = name == leader
        row["below_best_ci"] = interval_of(found[leader] - resampled)
        result["recipes"][name] = row
    return result


def interval_of(resampled: np.ndarray) -> list[float]:
    """The 95 % interval of a number by its resamples; the first one is the number itself."""
    return np.quantile(resampled[1:], (0.025, 0.975)).tolist()


def expected_maximum(n: float) -> float:
    """The expected maximum of n independent standard normal numbers; n need not be whole."""
    x = np.linspace(-8, 8, 16_001)
    density = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    below = np.cumsum(density) * (x[1] - x[0])  # the distribution function
    return float(np.sum(x * n * density * np.minimum(below, 1) ** (n - 1)) * (x[1] - x[0]))


def accuracy_and_noise(accuracies: np.ndarray) -> dict:
    """The mean of accuracies (networks, seeds), and from two seeds on how much of their spread is noise."""
    mean = {"accuracy": float(accuracies.mean())}
    return mean | variance(accuracies) if accuracies.shape[1] > 1 else mean


def rewards_table() -> str:
    """What one reward says of the accuracy after eight epochs, by recipe, and what it costs."""
    header = ["a reward's training", "n", "core-seconds", "accuracy", "correlation", "below the best", "in equal time"]
    rows = []
    for name, row in read("cifar10_rewards.json")["recipes"].items():
        correlation = "{:.2f} ({:.2f} to {:.2f})".format(row["correlation"], *row["correlation_ci"])
        below = "{:.2f} to {:.2f}".format(*row["below_best_ci"]) if not row["is_best"] else "the best"
        equal_time = "{expected_best:.2f}, of {children:.0f}".format(**row["in_equal_time"])
        rows.append(
            [name, row["trainings"], f"{row['seconds']:.1f}", f"{row['accuracy']:.1%}", correlation, below, equal_time]
        )
    return table(header, rows)


TABLES = {"cifar10_rewards": rewards_table}


@input_errors()
def main() -> None:
    shared = load_data("CIFAR10")
    networks, done = panel(shared[0]), set(read_rows(FILE, "recipe", "architecture"))
    order = [(name, 0) for name in RECIPES] + [(JUDGE, 1)] + [(name, 1) for name in RECIPES if name != JUDGE]
    keys = [(name, a, s) for name, s in order for a in networks if (name, a, s) not in done]
    jobs = {(name, a, s): (a, RECIPES[name], child_seed(s, a)) for name, a, s in keys}
    if jobs:
        train_missing(FILE, COLUMNS, "CIFAR10", jobs, shared)
    result = summarize(read_rows(FILE, "recipe", "architecture"), networks)
    result["limits"] = LIMITS
    write_json(
        RESULTS / "cifar10_rewards.json", result | {"command": "python -m benchmarks.cifar10_rewards"} | environment()
    )
    for name, row in result["recipes"].items():
        print(f"{name:<30} {row['seconds']:6.1f} s   {row['accuracy']:.2%}   correlation {row['correlation']:.2f}")


if __name__ == "__main__":
    main()
