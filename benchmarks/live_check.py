"""Does a real search do what its ledger says? Replays run folders, and trains some of their children again.

    python train.py --mode generate --seed 1 --run_dir runs/mnist-seed1
    python -m benchmarks.live_check runs/mnist runs/mnist-seed1 runs/mnist-seed2

The replay asks the same update for the same number of children, with the ledger's rewards in one process. Every tenth
child is trained again. The table of all 729 networks holds the same trainings; where its machine rounds otherwise than
the search's, they differ a little. Writes results/live_check.json.
"""

import csv
import statistics
import sys
from pathlib import Path

import torch

from benchmarks.common import RESULTS, load_mnist, train_and_test
from benchmarks.enumerate_space import TABLE
from model import Recipe
from policy_gradient import PolicyGradient
from search_space import SmallSpace
from train import count_finalists, make_controller, parse_arguments, update_settings
from utils import environment, read_json, read_ledger, write_json

EVERY = 10


def check(run_dir: Path, shared: tuple, table: dict[str, dict]) -> dict:
    """Replay the search of a run folder from its ledger, and train every tenth child again."""
    args = parse_arguments([])
    vars(args).update(read_json(run_dir / "config.json")["flags"])
    space, order = SmallSpace(args.num_layers), []
    rows, _ = read_ledger(run_dir / "children.jsonl")
    again, _ = read_ledger(run_dir / "finalists.jsonl")
    live = {row["architecture"]: row["val_accuracy"] for _, row in sorted(rows.items())}

    def evaluate(actions: tuple[int, ...]) -> float:
        order.append(str(space.decode(actions)))
        return live[order[-1]] ** args.reward_exponent

    torch.set_num_threads(1)
    controller = make_controller(space, args.hidden_size, args.controller_layers, args.seed, uniform=False)
    list(PolicyGradient(controller, **update_settings(args)).search(evaluate, args.num_children))
    finalists = sorted(order, key=live.get, reverse=True)[: count_finalists(args.num_children, args.num_finalists)]
    means = {row["architecture"]: live[row["architecture"]] + row["val_accuracy"] for row in again.values()}
    retrained = {text: train_and_test(shared, text, Recipe(), args.seed)["val_accuracy"] for text in order[::EVERY]}
    differences = [abs(accuracy - float(table[text][f"val_{args.seed}"])) for text, accuracy in live.items()]
    thirds = [statistics.fmean(list(live.values())[i * len(live) // 3 : (i + 1) * len(live) // 3]) for i in range(3)]
    return {
        "run": run_dir.name,
        "seed": args.seed,
        "children": len(live),
        "replay_is_the_same": order == list(live) and set(finalists) == set(means),
        "replay_chooses": max(finalists, key=means.get),
        "live_search_chose": read_json(run_dir / "best.json")["architecture"],
        "trained_again": len(retrained),
        "equal": sum(accuracy == live[text] for text, accuracy in retrained.items()),
        "mean_accuracy_of_each_third": thirds,
        "mean_difference_to_the_table": statistics.fmean(differences),
    }


def main() -> None:
    table, shared = {row["architecture"]: row for row in csv.DictReader(TABLE.open())}, load_mnist()
    checked = [check(Path(run_dir), shared, table) for run_dir in sys.argv[1:]]
    command = {"command": f"python -m benchmarks.live_check {' '.join(sys.argv[1:])}"}
    write_json(RESULTS / "live_check.json", {"searches": checked} | command | environment())
    for result in checked:
        print(result)


if __name__ == "__main__":
    main()
