"""How much is a reward worth? 40 networks of the complete table get the whole training of `--mode evaluate`.

    python -m benchmarks.reward_fidelity      25 minutes on two cores for each seed; goes on where it stopped
    python -m benchmarks.reward_fidelity --num_seeds 4

Writes results/reward_fidelity.csv (accuracies as fractions, `final_s` is the test accuracy of training s of
`--mode evaluate`), and results/reward_fidelity.json (correlations).
"""

import argparse
import csv
import io
import sys
from concurrent.futures import as_completed

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from tqdm import tqdm

from benchmarks.common import RESULTS
from benchmarks.enumerate_space import SEEDS, TABLE
from datasets import evaluation_data, in_shared_memory
from evaluation import EVALUATION, final_child
from search_space import parse_architecture
from utils import ROOT, child_seed, environment, usable_cores, write_atomically, write_json
from workers import Workers

ARCHITECTURES = 40
FILE = RESULTS / "reward_fidelity.csv"


def chosen() -> list[dict]:
    """Every 18th network of the table by mean validation accuracy, the best first, with empty final accuracies."""
    rows = list(csv.DictReader(TABLE.open()))
    if not all(row[f"val_{s}"] for row in rows for s in SEEDS):
        sys.exit(f"{TABLE} is not complete: run python -m benchmarks.enumerate_space first")
    rows.sort(key=lambda row: -float(row["val_mean"]))
    places = ((np.arange(ARCHITECTURES) + 0.5) * len(rows) / ARCHITECTURES).astype(int)
    columns = ("architecture", *(f"val_{s}" for s in SEEDS), "val_mean", "test_mean")
    return [{"rank": place + 1} | {c: rows[place][c] for c in columns} for place in places]


def train(rows: list[dict], num_seeds: int) -> None:
    """Fill what the rows lack, a seed after the other; each training is saved as it ends."""
    data = in_shared_memory(evaluation_data("MNIST", ROOT / "data"))
    with Workers(usable_cores(), (data, torch.zeros(1, dtype=torch.int64).share_memory_())) as workers:
        jobs = {}
        for seed in range(num_seeds):
            for row in rows:
                if not row.get(f"final_{seed}"):
                    text = row["architecture"]
                    job = (parse_architecture(text), EVALUATION, 0, child_seed(0, text, "final", seed), "cpu")
                    jobs[workers.submit(workers.run, final_child, *job)] = row, f"final_{seed}"
        for future in tqdm(as_completed(jobs), total=len(jobs)):
            row, column = jobs[future]
            row[column] = round(future.result()["top1"], 6)
            save(rows)


def save(rows: list[dict]) -> None:
    text, finals = io.StringIO(), sorted({column for row in rows for column in row if column.startswith("final_")})
    columns = [column for column in rows[0] if column not in finals]
    writer = csv.DictWriter(text, [*columns, *finals], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(FILE, text.getvalue().encode())


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; equal values share their mean rank."""

    def ranks(values: np.ndarray) -> np.ndarray:
        return (values[:, None] > values).sum(1) + (values[:, None] == values).sum(1) / 2

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def variance(values: np.ndarray) -> dict:
    """Standard deviation within and between the rows of `values` (n, seeds), and the share that is between."""
    noise = values.var(1, ddof=1).mean()
    signal = max(0.0, values.mean(1).var(ddof=1) - noise / values.shape[1])
    return {"noise": noise**0.5, "signal": signal**0.5, "share_of_variance": signal / (signal + noise)}


def summarize(rows: list[dict], num_seeds: int) -> dict:
    """What one reward, and the mean of three, says about the final test accuracy and about the space."""
    table = np.array([[float(row[f"val_{s}"]) for s in SEEDS] for row in csv.DictReader(TABLE.open())])
    rewards = np.array([[float(row[f"val_{s}"]) for s in SEEDS] for row in rows])
    finals = np.array([[float(row[f"final_{s}"]) for s in range(num_seeds)] for row in rows])
    random, one = np.random.default_rng(0), rewards[:, 0]
    resampled = [spearman(one[i], finals.mean(1)[i]) for i in random.integers(len(rows), size=(2000, len(rows)))]
    best = np.argsort(-rewards.mean(1))[: len(rows) // 2]
    return {
        "architectures": len(rows),
        "final_seeds": num_seeds,
        "rank_correlation_of_one_reward": [spearman(column, finals.mean(1)) for column in rewards.T],
        "rank_correlation_of_one_reward_ci": np.quantile(resampled, (0.025, 0.975)).tolist(),
        "rank_correlation_of_the_mean_of_three": spearman(rewards.mean(1), finals.mean(1)),
        "rank_correlation_in_the_better_half": spearman(rewards.mean(1)[best], finals.mean(1)[best]),
        "rank_correlation_between_final_seeds": spearman(*finals.T[:2]) if num_seeds > 1 else None,
        "reward_all_729": variance(table),
        "final": variance(finals) if num_seeds > 1 else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_seeds", type=int, default=1)
    num_seeds = parser.parse_args().num_seeds
    rows = chosen()
    if FILE.exists():
        done = {row["architecture"]: row for row in csv.DictReader(FILE.open())}
        for row in rows:
            row |= {k: v for k, v in done.get(row["architecture"], {}).items() if k.startswith("final_")}
    train(rows, num_seeds)
    summary = summarize(rows, num_seeds)
    command = {"command": f"python -m benchmarks.reward_fidelity --num_seeds {num_seeds}"}
    write_json(RESULTS / "reward_fidelity.json", summary | command | environment())
    print(summary)


if __name__ == "__main__":
    main()
