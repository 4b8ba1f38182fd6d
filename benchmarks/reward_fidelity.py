"""How much does a reward say? 50 networks, trained for four epochs, judge the recipes that a search could use.

    python -m benchmarks.reward_fidelity      four hours on two cores; goes on where it stopped

30 networks over the whole range of the space and 20 more of its best tenth (by the table of version 1.0.0). Everything is
trained on the 55,000 images of a search and measured on its 5,000 validation and on the 10,000 test images. Where reward
and judge are measured on the same images, the luck of these images counts as knowledge, the more the longer a reward's
training is. So the correlation is also told of a reward by one set and the judge by the other (`other`, the mean of both
ways round). Writes results/reward_fidelity.csv (a row a training) and results/reward_fidelity.json (correlations).
"""

import csv
from dataclasses import asdict, replace

import numpy as np

from benchmarks.common import RESULTS, input_errors, read, read_rows, table, train_missing
from model import Recipe
from utils import child_seed, environment, write_json

FILE = RESULTS / "reward_fidelity.csv"
JUDGE = "final"  # the mean of its trainings is what a reward should tell
BASE = Recipe()
RECIPES = {JUDGE: Recipe(epochs=4, shift=1)}  # half as long as `--mode evaluate`
RECIPES |= {f"{n} epochs": replace(BASE, epochs=n) for n in (0.15, 0.2, 0.3, 0.4, 0.6, 1.0)}
RECIPES |= {
    f"{n} epochs, batch 128": replace(BASE, epochs=n, batch_size=128, lr=0.01, filter_lr=0.05) for n in (0.2, 0.3, 0.4)
}
RECIPES |= {
    "0.3 epochs, batch 32": replace(BASE, epochs=0.3, batch_size=32, lr=0.004, filter_lr=0.02),
    "0.3 epochs, longer decay": replace(BASE, epochs=0.3, warmup=0.05),
    "0.3 epochs, lower rates": replace(BASE, epochs=0.3, lr=0.004, filter_lr=0.02),
    "0.3 epochs, higher rates": replace(BASE, epochs=0.3, lr=0.009, filter_lr=0.045),
}
NUM_SEEDS = {name: 2 for name in RECIPES} | {JUDGE: 4, "0.6 epochs": 4, "1.0 epochs": 4}
CLOSEST = ("0.15 epochs", "0.2 epochs", "0.3 epochs, batch 128")  # cheap, and perhaps as good as the best
NUM_SEEDS |= dict.fromkeys(CLOSEST, 6)
IMAGES = {  # what the reward and the judge are measured on
    "val": [("val_accuracy", "val_accuracy")],
    "other": [("val_accuracy", "test_accuracy"), ("test_accuracy", "val_accuracy")],
}
COLUMNS = ("group", "recipe", "architecture", "seed", "val_accuracy", "test_accuracy", "seconds", "instruction_set")


def panel() -> dict[str, str]:
    """The networks, those that were begun or else chosen from the table, and the group of each."""
    if FILE.exists():
        return {row["architecture"]: row["group"] for row in csv.DictReader(FILE.open())}
    rows = sorted(
        csv.DictReader((RESULTS / "mnist_space.csv").open()), key=lambda row: -float(row["val_0"]) - float(row["val_1"])
    )
    names, tenth = [row["architecture"] for row in rows], len(rows) // 10
    places = ((np.arange(30) + 0.5) * len(rows) / 30).astype(int)
    groups = {names[place]: "best tenth" if place < tenth else "range" for place in places}
    rest = [name for name in names[:tenth] if name not in groups]
    return groups | {rest[place]: "best tenth" for place in ((np.arange(20) + 0.5) * len(rest) / 20).astype(int)}


def train() -> None:
    """Train what the file lacks, half of the judge's trainings last."""
    groups, done = panel(), set(read_rows(FILE, "recipe", "architecture"))
    jobs = [(name, a, s) for name, n in NUM_SEEDS.items() for s in range(n) for a in groups]
    jobs = sorted(set(jobs) - done, key=lambda job: (job[2] >= 2, job[0] != JUDGE, job[2], jobs.index(job)))
    arguments = {(groups[a], name, a, s): (a, RECIPES[name], child_seed(s, a)) for name, a, s in jobs}
    if arguments:
        train_missing(FILE, COLUMNS, "MNIST", arguments)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis; equal values share their mean rank."""
    return (values[..., :, None] > values[..., None, :]).sum(-1) + (values[..., :, None] == values[..., None, :]).sum(
        -1
    ) / 2


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlation along the last axis."""
    a, b = (ranks(x) - ranks(x).mean(-1, keepdims=True) for x in (a, b))
    return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))


def variance(values: np.ndarray) -> dict:
    """Standard deviation within and between the rows of `values` (n, seeds), and what share of a mean is signal."""
    noise, seeds = values.var(1, ddof=1).mean(), values.shape[1]
    signal = max(0.0, values.mean(1).var(ddof=1) - noise / seeds)
    result = {"noise": noise**0.5, "signal": signal**0.5, "reliability_of_one": signal / (signal + noise)}
    return result | {f"reliability_of_{seeds}": signal / (signal + noise / seeds)}


def on_other_images(val: np.ndarray, test: np.ndarray) -> float:
    """Share of the judge's variance on validation images (n, seeds) that other trainings show on the test images."""
    covariances = np.cov(val.T, test.T)[: val.shape[1], val.shape[1] :]
    between = covariances[~np.eye(len(covariances), dtype=bool)].mean()
    return between / (val.mean(1).std(ddof=1) * test.mean(1).std(ddof=1))


def fidelity(rewards: np.ndarray, judge: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Rank correlation (r,) of one reward (n, seeds) with the judge (n,), the mean over the seeds, in r resamples."""
    return np.array([np.mean([spearman(column[i], judge[i]) for column in rewards.T]) for i in drawn])


def summarize() -> dict:
    """For each recipe what one reward says, overall and in the best tenth, and how far below the best recipe that is.

    The best recipe is that of these networks, not chosen anew in each resample: a recipe is rather called below it.
    """
    rows, groups = read_rows(FILE, "recipe", "architecture"), panel()
    seeds = {name: [s for s in range(n) if all((name, a, s) in rows for a in groups)] for name, n in NUM_SEEDS.items()}
    names = [name for name in RECIPES if len(seeds[name]) > 1]  # what all networks have
    value = {
        (name, kind): np.array([[float(rows[name, a, s][kind]) for s in seeds[name]] for a in groups])
        for name in names for kind in ("val_accuracy", "test_accuracy", "seconds")
    }  # fmt: skip
    random, best = np.random.default_rng(0), np.array([group == "best tenth" for group in groups.values()])
    everything, tenth = np.arange(len(groups)), best.nonzero()[0]
    result = {"networks": len(groups), "of the best tenth": int(best.sum())}
    result["judge"] = {kind: variance(value[JUDGE, f"{kind}_accuracy"]) for kind in ("val", "test")}
    result["judge in the best tenth"] = {k: variance(value[JUDGE, f"{k}_accuracy"][best]) for k in ("val", "test")}
    val, test = (value[JUDGE, f"{kind}_accuracy"] for kind in ("val", "test"))
    result["judge_on_other_images"] = {
        "all": on_other_images(val, test),
        "best_tenth": on_other_images(val[best], test[best]),
    }
    result["recipes"] = {}
    for where, some in (("all", everything), ("best_tenth", tenth)):
        drawn = np.stack([some, *(random.choice(some, len(some)) for _ in range(2000))])  # the first: as they are
        for key, pairs in IMAGES.items():
            found = {
                name: np.mean([fidelity(value[name, a], value[JUDGE, b].mean(1), drawn) for a, b in pairs], 0)
                for name in names if name != JUDGE
            }  # fmt: skip
            leader = max(found, key=lambda name: found[name][0])
            for name, r in found.items():
                row = result["recipes"].setdefault(name, {"recipe": asdict(RECIPES[name])})
                row["seconds"] = float(value[name, "seconds"].mean())
                row |= variance(value[name, "val_accuracy"])
                row[f"{where}_{key}"] = float(r[0])
                row[f"{where}_{key}_ci"] = np.quantile(r[1:], (0.025, 0.975)).tolist()
                row[f"{where}_{key}_below_best_ci"] = np.quantile((found[leader] - r)[1:], (0.025, 0.975)).tolist()
    return result


def recipes_table() -> str:
    """What one reward says of the final accuracy, by recipe, and what it costs."""
    header = ["recipe", "core-seconds", "all 50", "best tenth", "all 50, same images", "best tenth, same images"]
    rows = []
    for name, row in read("reward_fidelity.json")["recipes"].items():
        cells = (
            (row[key], *row[f"{key}_ci"]) for key in ("all_other", "best_tenth_other", "all_val", "best_tenth_val")
        )
        rows.append([name, f"{row['seconds']:.1f}", *("{:.2f} ({:.2f} to {:.2f})".format(*cell) for cell in cells)])
    return table(header, rows)


TABLES = {"recipes": recipes_table}


@input_errors()
def main() -> None:
    train()
    result = summarize()
    write_json(
        RESULTS / "reward_fidelity.json", result | {"command": "python -m benchmarks.reward_fidelity"} | environment()
    )
    for name, row in result["recipes"].items():
        print(
            f"{name:<28} {row['seconds']:5.1f} s   all {row['all_other']:.2f}   best tenth {row['best_tenth_other']:.2f}"
        )


if __name__ == "__main__":
    main()
