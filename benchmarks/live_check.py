"""Does a real search end exactly as its replay on the table says? Compares run folders with results/mnist_space.csv.

    python train.py --mode generate --seed 1 --run_dir runs/mnist-seed1
    python -m benchmarks.live_check runs/mnist runs/mnist-seed1 runs/mnist-seed2

A search with `--seed s` meets the table's column val_s; the second trainings of its finalists are taken from the search.
Writes results/live_check.json.
"""

import csv
import json
import sys
from pathlib import Path

import torch

from benchmarks.common import RESULTS
from benchmarks.enumerate_space import TABLE
from policy_gradient import PolicyGradient
from search_space import SmallSpace
from train import count_finalists, make_controller, parse_arguments, update_settings
from utils import environment, read_json, read_ledger, write_json


def check(run_dir: Path, table: dict[str, dict]) -> dict:
    """Replay the search of a run folder on the table; what it trained, what it chose, and whether the replay agrees."""
    args = parse_arguments([])
    vars(args).update(read_json(run_dir / "config.json")["flags"])
    space, order, column = SmallSpace(args.num_layers), {}, f"val_{args.seed}"

    def evaluate(actions: tuple[int, ...]) -> float:
        text = str(space.decode(actions))
        order[text] = float(table[text][column])
        return order[text] ** args.reward_exponent

    torch.set_num_threads(1)
    controller = make_controller(space, args.hidden_size, args.controller_layers, args.seed, uniform=False)
    list(PolicyGradient(controller, **update_settings(args)).search(evaluate, args.num_children))
    rows, _ = read_ledger(run_dir / "children.jsonl")
    again, _ = read_ledger(run_dir / "finalists.jsonl")
    best = read_json(run_dir / "best.json")
    live = {row["architecture"]: round(row["val_accuracy"], 6) for _, row in sorted(rows.items())}
    live_again = {row["architecture"]: row["val_accuracy"] for row in again.values()}
    finalists = sorted(order, key=order.get, reverse=True)[: count_finalists(args.num_children, args.num_finalists)]
    means = {f: order[f] + live_again[f] for f in finalists}
    return {
        "run": run_dir.name,
        "seed": args.seed,
        "children": len(live),
        "same_children_and_accuracies": list(live.items()) == list(order.items()),
        "replay_chooses": max(means, key=means.get),
        "live_search_chose": best["architecture"],
    }


def main() -> None:
    table = {row["architecture"]: row for row in csv.DictReader(TABLE.open())}
    checked = [check(Path(run_dir), table) for run_dir in sys.argv[1:]]
    command = {"command": f"python -m benchmarks.live_check {' '.join(sys.argv[1:])}"}
    write_json(RESULTS / "live_check.json", {"searches": checked} | command | environment())
    print(json.dumps(checked, indent=2))


if __name__ == "__main__":
    main()
