"""Which recipe ranks architectures best per second? Trains the panel with each, and writes results/recipe.{csv,md}.

python -m benchmarks.recipes        about 25 minutes on two cores; goes on where it stopped
"""

import csv
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.common import PANEL, RESULTS, load_mnist, train_and_test
from model import Recipe
from utils import environment, usable_cores
from workers import Workers

DEFAULT = Recipe()
LONG = "3 epochs"
RECIPES = {
    "default": DEFAULT,
    "0.4 epochs": replace(DEFAULT, epochs=0.4),
    "1 epoch": replace(DEFAULT, epochs=1.0),
    "Adam for filters too": replace(DEFAULT, optimizer="adam"),
    "Adam for filters too, 1 epoch": replace(DEFAULT, optimizer="adam", epochs=1.0),
    "filter_lr 0.02": replace(DEFAULT, filter_lr=0.02),
    "filter_lr 0.05": replace(DEFAULT, filter_lr=0.05),
    "batch 128, lr 0.01, filter_lr 0.05": replace(DEFAULT, batch_size=128, lr=0.01, filter_lr=0.05),
    "no label smoothing": replace(DEFAULT, label_smoothing=0.0),
    "shift 1": replace(DEFAULT, shift=1),
    LONG: replace(DEFAULT, epochs=3.0),
}
SEEDS = (0, 1)
COLUMNS = ("recipe", "architecture", "seed", "val_accuracy", "test_accuracy", "seconds")
RAW, TABLE = RESULTS / "recipe.csv", RESULTS / "recipe.md"


def run() -> None:
    """Train what results/recipe.csv lacks."""
    done = read()
    jobs = [(name, text, seed) for name in RECIPES for seed in SEEDS for text in PANEL]
    jobs = [job for job in jobs if job not in done]
    with Workers(usable_cores(), load_mnist()) as workers, open(RAW, "a", newline="") as file:
        writer = csv.writer(file)
        if not done:
            writer.writerow(COLUMNS)
        futures = [workers.submit(workers.run, train_and_test, text, RECIPES[name], seed) for name, text, seed in jobs]
        for job, future in zip(tqdm(jobs), futures, strict=True):
            writer.writerow([*job, *(round(future.result()[column], 5) for column in COLUMNS[3:])])
            file.flush()


def read() -> dict[tuple[str, str, int], tuple[float, float, float]]:
    """The rows of results/recipe.csv."""
    if not RAW.exists():
        return {}
    rows = csv.DictReader(RAW.open())
    return {(r["recipe"], r["architecture"], int(r["seed"])): tuple(float(r[c]) for c in COLUMNS[3:]) for r in rows}


def ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values))


def write_table(path: Path = TABLE) -> None:
    """One line per recipe: accuracy, noise, what share of the reward's variance is the architecture, cost."""
    results = read()
    by_recipe = {n: np.array([[results[n, a, s] for s in SEEDS] for a in PANEL]) for n in RECIPES}  # (12, seeds, 3)
    truth = by_recipe[LONG][:, :, 1].mean(1)
    made = environment()
    where = f"commit {made['git_commit']}, torch {made['versions']['torch']}, {made['machine']['cpu']}"
    lines = [
        "# Recipes tried\n",
        f"`python -m benchmarks.recipes`: {len(PANEL)} architectures, {len(SEEDS)} seeds each; {where}.\n",
        "*noise*: standard deviation within an architecture; *signal*: between them, with the noise taken out; both in "
        "points of validation accuracy. *reliability*: signal² / (signal² + noise²), the share of a reward's variance "
        "that is the architecture. *rank*: Spearman's correlation of one reward with the mean test accuracy after "
        f"{LONG}, averaged over the seeds. Cost goes with the number of images; other work ran beside, so recipe.csv's "
        "seconds don't compare recipes (child_speed.json has the default's). With so few architectures and seeds, "
        "differences of 0.1 in the last columns are within chance.\n",
        "| recipe | val. accuracy % | test accuracy % | noise | signal | reliability | rank | images a child |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, values in by_recipe.items():
        accuracy = 100 * values[:, :, 0]
        noise = accuracy.var(1, ddof=1).mean()
        signal = max(0.0, accuracy.mean(1).var(ddof=1) - noise / len(SEEDS))
        rank = statistics.fmean(np.corrcoef(ranks(one), ranks(truth))[0, 1] for one in accuracy.T)
        lines.append(
            f"| {name} | {accuracy.mean():.2f} | {100 * values[:, :, 1].mean():.2f} | {noise**0.5:.3f} "
            f"| {signal**0.5:.3f} | {signal / (signal + noise):.2f} | {rank:.2f} | {RECIPES[name].epochs * 55_000:,.0f} |"
        )
    path.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    run()
    write_table()
