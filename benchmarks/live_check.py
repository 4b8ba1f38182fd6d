"""Does a real search do what its ledger says? Replays run folders, and trains some of their children again.

    python train.py --mode generate --seed 1 --run_dir runs/mnist-seed1
    python -m benchmarks.live_check runs/mnist runs/mnist-seed1 runs/mnist-seed2

The replay asks the same update for the same number of children, with the ledger's rewards in one process. Every tenth
child is trained again. Writes results/live_check.json.
"""

import statistics
import sys
from pathlib import Path

import torch

from benchmarks.common import RESULTS, input_errors, load_data, train_and_test
from model import Recipe
from policy_gradient import PolicyGradient
from search_space import SmallSpace
from settings import make_controller, update_settings
from train import count_finalists, parse_arguments
from utils import child_seed, environment, read_json, read_ledger, write_json

EVERY = 10


def check(run_dir: Path, shared: tuple) -> dict:
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
    controller = make_controller(args, space)
    search = PolicyGradient(controller, **update_settings(args))
    list(search.search(evaluate, args.num_children))
    ranking = search.ranking({actions: [reward] for actions, reward in search.reward_of.items()})
    finalists = ranking[: count_finalists(args.num_children, args.num_finalists)]
    second = {tuple(row["actions"]): row["reward"] for row in again.values()}
    seeds = {text: child_seed(args.seed, text) for text in order[::EVERY]}
    retrained = {text: train_and_test(shared, text, Recipe(), seed)["val_accuracy"] for text, seed in seeds.items()}
    thirds = [statistics.fmean(list(live.values())[i * len(live) // 3 : (i + 1) * len(live) // 3]) for i in range(3)]
    return {
        "run": run_dir.name,
        "seed": args.seed,
        "children": len(live),
        "replay_is_the_same": order == list(live) and set(finalists) == set(second),
        "replay_chooses": str(
            space.decode(search.ranking({a: [search.reward_of[a], second[a]] for a in finalists})[0])
        ),
        "live_search_chose": read_json(run_dir / "best.json")["architecture"],
        "trained_again": len(retrained),
        "equal": sum(accuracy == live[text] for text, accuracy in retrained.items()),
        "mean_accuracy_of_each_third": thirds,
    }


@input_errors()
def main() -> None:
    shared = load_data("MNIST")
    checked = [check(Path(run_dir), shared) for run_dir in sys.argv[1:]]
    command = {"command": f"python -m benchmarks.live_check {' '.join(sys.argv[1:])}"}
    write_json(RESULTS / "live_check.json", {"searches": checked} | command | environment())
    for result in checked:
        print(result)


if __name__ == "__main__":
    main()
