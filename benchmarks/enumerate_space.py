"""Train every network of the default space as a search does: results/<data set>_space.csv.

    python -m benchmarks.enumerate_space                          two hours on two cores; goes on where it stopped
    python -m benchmarks.enumerate_space --dataset FashionMNIST
    python -m benchmarks.enumerate_space --fresh 6                then, an hour: fresh trainings of the best 110

`val_0` is the reward in a search with `--seed 0`, `val_1` what the network has as a finalist there; `fresh_0, fresh_1, ...`
are further trainings that no search reads, by which picks are judged. Empty cells are not trained yet. `test_mean` (of
the first two) is for looking at, `seconds` are a core's for one training. A row may hold trainings of two instruction
sets, which round differently, and then names both; its seconds are of the first.
"""

import argparse
import csv
import io
import itertools
import json
from concurrent.futures import as_completed
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.common import RESULTS, input_errors, load_data, train_and_test
from datasets import HELD_OUT, Data, Images
from model import Recipe, size_or_none
from search_space import SmallSpace
from utils import InputError, child_seed, environment, read_json, usable_cores, write_atomically, write_json
from workers import Workers

PURPOSES = {"val_0": (), "val_1": ("finalist",)}  # of the seeds of `train.py --seed 0`
MAX_FRESH, BEST = 6, 110
PURPOSES |= {f"fresh_{i}": ("fresh", i) for i in range(MAX_FRESH)}
CHOICES = [f"{name}_{layer}" for layer, name, _ in SmallSpace().tokens]
TESTS = ("test_0", "test_1")
COLUMNS = ["architecture", *CHOICES, *PURPOSES, *TESTS, "test_mean", "parameters", "flops", "seconds"]
COLUMNS += ["instruction_set"]


def empty_table() -> dict[str, dict]:
    """All architectures by name, in the order of their choices, nothing trained yet."""
    space, table, digits = SmallSpace(), {}, Data(Images(torch.zeros(1, 1, 28, 28), None), None, 10)
    for actions in itertools.product(*map(range, space.num_choices)):
        architecture = space.decode(actions)
        row = dict.fromkeys(COLUMNS, "") | {"architecture": str(architecture)}
        values = [choices[a] for (_, _, choices), a in zip(space.tokens, actions, strict=True)]
        row |= dict(zip(CHOICES, values, strict=True)) | size_or_none(architecture, digits)
        table[str(architecture)] = row
    return table


def enter(row: dict, column: str, result: dict, instruction_set: str) -> None:
    """Put one training into its row."""
    row[column] = round(result["val_accuracy"], 6)
    if column in ("val_0", "val_1"):
        row[f"test_{column[-1]}"] = round(result["test_accuracy"], 6)
    if all(row[test] != "" for test in TESTS):
        row["test_mean"] = round(sum(float(row[test]) for test in TESTS) / 2, 6)
    row["seconds"] = row["seconds"] or round(result["seconds"], 2)
    row["instruction_set"] = " ".join(sorted({*row["instruction_set"].split(), instruction_set}))


def save(file: Path, table: dict[str, dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.values())
    write_atomically(file, text.getvalue().encode())


def missing(table: dict[str, dict], fresh: int) -> list[tuple[str, str]]:
    """Networks and columns that are not trained yet: the two of a search, then fresh ones of the best by their mean."""
    todo = [(text, column) for column in ("val_0", "val_1") for text in table if table[text][column] == ""]
    if todo:
        return todo
    best = sorted(table, key=lambda text: -float(table[text]["val_0"]) - float(table[text]["val_1"]))[:BEST]
    return [(text, f"fresh_{i}") for i in range(fresh) for text in best if table[text][f"fresh_{i}"] == ""]


@input_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="MNIST", choices=("MNIST", "FashionMNIST"))
    parser.add_argument("--fresh", type=int, default=0, choices=range(MAX_FRESH + 1), help="fresh trainings")
    args = parser.parse_args()
    file = RESULTS / f"{args.dataset.lower()}_space.csv"
    made, about = environment(), file.with_suffix(".json")
    fingerprint = {"recipe": asdict(Recipe()), "held_out": HELD_OUT, "torch": made["versions"]["torch"]}
    fingerprint = json.loads(json.dumps(fingerprint))
    table = empty_table()
    if file.exists():
        if (before := read_json(about).get("fingerprint")) != fingerprint:
            raise InputError(f"{file} was made with {before}, not with {fingerprint}: move it away to start anew")
        table |= {row["architecture"]: row for row in csv.DictReader(file.open())}
    write_json(
        about,
        {"fingerprint": fingerprint, "command": f"python -m benchmarks.enumerate_space --dataset {args.dataset}"}
        | made,
    )
    with Workers(usable_cores(), load_data(args.dataset)) as workers:
        while todo := missing(table, args.fresh):
            jobs = {}
            for text, column in todo:
                seed = child_seed(0, text, *PURPOSES[column])
                jobs[workers.submit(workers.run, train_and_test, text, Recipe(), seed)] = text, column
            for job in tqdm(as_completed(jobs), total=len(jobs), unit="training"):
                text, column = jobs[job]
                enter(table[text], column, job.result(), made["machine"]["instruction_set"])
                save(file, table)
            if todo[0][1].startswith("fresh"):
                return


if __name__ == "__main__":
    main()
