"""Train every network of the default space with the search's own recipe: results/mnist_space.csv.

    python -m benchmarks.enumerate_space       about two hours on two cores; goes on where it stopped

Seed s of the table is run seed s of a search: `train.py --mode generate --seed 0` meets exactly the column val_0.
Empty cells are not trained yet. The test columns are for looking at; no search reads them.
"""

import csv
import io
import itertools
import json
import sys
from concurrent.futures import as_completed
from dataclasses import asdict

from tqdm import tqdm

from benchmarks.common import RESULTS, load_mnist, train_and_test
from datasets import HELD_OUT
from model import Child, Recipe, summarize
from search_space import SmallSpace
from utils import InputError, environment, usable_cores, write_atomically, write_json
from workers import Workers

TABLE, FINGERPRINT = RESULTS / "mnist_space.csv", RESULTS / "mnist_space.json"
SEEDS = (0, 1, 2)
CHOICES = [f"{name}_{layer}" for layer, name, _ in SmallSpace().tokens]
COLUMNS = [
    "architecture",
    *CHOICES,
    *(f"val_{s}" for s in SEEDS),
    "val_mean",
    *(f"test_{s}" for s in SEEDS),
    "test_mean",
]
COLUMNS += ["parameters", "flops", "seconds"]


def empty_table() -> dict[str, dict]:
    """All architectures by name, in the order of their choices, nothing trained yet."""
    space, table = SmallSpace(), {}
    for actions in itertools.product(*map(range, space.num_choices)):
        architecture = space.decode(actions)
        layers = summarize(Child(architecture, (1, 28, 28), 10), (1, 28, 28))
        row = dict.fromkeys(COLUMNS, "") | {"architecture": str(architecture)}
        values = [choices[a] for (_, _, choices), a in zip(space.tokens, actions, strict=True)]
        row |= dict(zip(CHOICES, values, strict=True))
        row |= {name: sum(getattr(layer, name) for layer in layers) for name in ("parameters", "flops")}
        table[str(architecture)] = row
    return table


def enter(row: dict, seed: int, result: dict) -> None:
    """Put one training into its row; means over the seeds that are there."""
    done = sum(row[f"val_{s}"] != "" for s in SEEDS)
    row["seconds"] = round((float(row["seconds"] or 0) * done + result["seconds"]) / (done + 1), 3)
    for kind in ("val", "test"):
        row[f"{kind}_{seed}"] = round(result[f"{kind}_accuracy"], 6)
        values = [float(row[f"{kind}_{s}"]) for s in SEEDS if row[f"{kind}_{s}"] != ""]
        row[f"{kind}_mean"] = round(sum(values) / len(values), 6)


def save(table: dict[str, dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.values())
    write_atomically(TABLE, text.getvalue().encode())


def main() -> None:
    """Train what the table lacks, seed by seed."""
    made = environment()
    fingerprint = {
        "recipe": asdict(Recipe()),
        "held_out": HELD_OUT,
        "torch": made["versions"]["torch"],
        "cpu": made["machine"]["cpu"],
        "instruction_set": made["machine"]["instruction_set"],
    }
    fingerprint = json.loads(json.dumps(fingerprint))
    if TABLE.exists():
        before = json.loads(FINGERPRINT.read_text())["fingerprint"]
        table = {row["architecture"]: row for row in csv.DictReader(TABLE.open())}
        if all(row[f"val_{s}"] for row in table.values() for s in SEEDS):
            sys.exit(f"{TABLE} is complete: move it away to start anew")
        if before != fingerprint:
            raise InputError(f"{TABLE} was made with {before}, not with {fingerprint}: move it away to start anew")
    else:
        table = empty_table()
    write_json(FINGERPRINT, {"fingerprint": fingerprint, "command": "python -m benchmarks.enumerate_space"} | made)
    todo = [(text, seed) for seed in SEEDS for text in table if table[text][f"val_{seed}"] == ""]
    with Workers(usable_cores(), load_mnist()) as workers:
        jobs = {workers.submit(workers.run, train_and_test, text, Recipe(), seed): (text, seed) for text, seed in todo}
        for job in tqdm(as_completed(jobs), total=len(table) * len(SEEDS), initial=len(table) * len(SEEDS) - len(jobs)):
            text, seed = jobs[job]
            enter(table[text], seed, job.result())
            save(table)


if __name__ == "__main__":
    main()
