"""The paper's experiment on CIFAR-10, as far as a machine goes: searches, final trainings, and a figure as its Fig. 6.

    python -m benchmarks.cifar10                        two cores: all that docs/cifar10.md tells, about seven hours
    python -m benchmarks.cifar10 --machine gpu          one GPU: deeper networks and longer trainings, about 25 minutes
    python -m benchmarks.cifar10 --minutes 8            stops after so long; the same command goes on from there
    python -m benchmarks.cifar10 --rehearse True        all commands with a few images, in runs/rehearsal

Each step is a command of train.py, which is printed, so that it can be copied. Its files stand in results/cifar10*/. A
command that has ended before takes seconds. After each step it writes results/cifar10-paper.json and .png, for a GPU
results/cifar10-gpu.json and .png: what the searches and final trainings cost, and how the searches compare.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from shlex import join, split

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common import RESULTS, input_errors, read, spread, table
from search_space import parse_architecture
from settings import boolean, number
from utils import ROOT, InputError, environment, read_ledger, write_json

NAMES = {"cpu": "cifar10-paper", "gpu": "cifar10-gpu"}  # of an experiment's folders
SEEDS = (0, 1, 2)
TRAIN_IMAGES = 45_000  # of a search: 5,000 are held out
PASSES = 3  # a training step costs three forward passes, because the backward pass costs two
TOPS = (1, 5, 15)  # the paper's: the mean of so many best networks
DATASET = ["--dataset", "CIFAR10"]
FEW = ["--train_images", "500", "--workers", "2"]
FEW_CHILDREN = ["--num_children", "6", "--child_epochs", "1"]
FEW_FINALS = ["--eval_epochs", "0.5", "--num_seeds", "1"]

# The space of the searches, and how their children are trained (results/cifar10_rewards.json)
CPU_SPACE = split("--space paper --num_layers 6 --pooling 2 --max_flops 60000000 --precision bfloat16")
CPU_SEARCH = [*CPU_SPACE, "--num_children", "120", "--child_epochs", "0.2"]
CPU_FINAL = split("--eval_epochs 40 --num_seeds 2 --precision bfloat16")
CPU_REFERENCES = split("--eval_epochs 8 --num_seeds 2 --precision bfloat16 --references True")
GPU_SPACE = split("--use_cuda True --workers 8 --space paper --num_layers 15 --pooling 2 --precision bfloat16")
GPU_SEARCH = [*GPU_SPACE, "--num_children", "200", "--child_epochs", "1"]
GPU_FINAL = split("--use_cuda True --eval_epochs 60 --num_seeds 2 --precision bfloat16")
MORE_FILTERS = ["--extra_filters", "40"]  # the paper's last step


def folder(root: Path, name: str, strategy: str = "reinforce", seed: int = 0) -> Path:
    """Where a search has its files."""
    random = "-random" if strategy == "random" else ""
    return root / (name + random + (f"-seed{seed}" if seed else ""))


def searches(root: Path, name: str, flags: Sequence[str], seeds: Sequence[int]) -> list[list[str]]:
    """Policy gradient and random search with each seed."""
    commands = []
    for seed in seeds:
        for strategy in ("reinforce", "random"):
            where = ["--run_dir", str(folder(root, name, strategy, seed))]
            commands.append(
                ["--mode", "generate", *DATASET, *flags, "--strategy", strategy, "--seed", str(seed), *where]
            )
    return commands


def final_training(root: Path, name: str, flags: Sequence[str], strategy: str) -> list[str]:
    """The command that trains what the first search of a strategy returned, and tests it."""
    return ["--mode", "evaluate", *DATASET, *flags, "--run_dir", str(folder(root, name, strategy))]


def steps(machine: str, root: Path) -> list[list[str]]:
    """The commands of an experiment, in the order in which they are run."""
    name = NAMES[machine]
    final = GPU_FINAL if machine == "gpu" else CPU_FINAL
    mine, random = (final_training(root, name, final, strategy) for strategy in ("reinforce", "random"))
    finals = [mine, random, [*mine, *MORE_FILTERS]]
    if machine == "gpu":
        return [*searches(root, name, GPU_SEARCH, [0]), *finals, [*random, *MORE_FILTERS]]
    small = ["--run_dir", str(root / "cifar10")]
    return [
        ["--mode", "generate", *DATASET, "--num_layers", "4", *small],
        ["--mode", "evaluate", *DATASET, *small],
        *searches(root, name, CPU_SEARCH, SEEDS),
        *finals,
        references(root),
    ]


def references(root: Path) -> list[str]:
    """The command that trains networks which nobody searched for as long as the best one; for a shorter time."""
    best = folder(root, "cifar10-paper") / "best.json"
    name = json.loads(best.read_text())["architecture"] if best.exists() else "c3x3f36-c5x1f48i1"
    return [*final_training(root, "cifar10-paper", CPU_REFERENCES, "reinforce"), "--architecture", name]


def shortened(command: list[str]) -> list[str]:
    """The same command with few images, children and epochs; a flag that stands later wins."""
    return [*command, *FEW, *(FEW_CHILDREN if "generate" in command else FEW_FINALS)]


def run(command: list[str], until: float) -> bool:
    """Run train.py; interrupts it at a time of `time.monotonic`, and returns whether it has ended by itself."""
    print(f"\n$ python train.py {join(command)}", flush=True)
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *command], cwd=ROOT)
    try:
        status = process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()
        return False
    if status:
        raise InputError(f"this command ended with exit code {status}, see above; the same command goes on from here")
    return True


def best_so_far(accuracies: np.ndarray, most: int) -> np.ndarray:
    """After each child, the mean of the `most` best accuracies so far (n,), or of all if they are fewer."""
    return np.array([np.sort(accuracies[: n + 1])[-most:].mean() for n in range(len(accuracies))])


def accuracies_of(where: Path) -> np.ndarray:
    """The validation accuracies of a search's children, in the order of sampling (n,)."""
    rows, _ = read_ledger(where / "children.jsonl")
    return np.array([rows[child]["val_accuracy"] for child in sorted(rows)])


def compare_searches(root: Path, name: str, seeds: Sequence[int]) -> dict:
    """By children trained, policy gradient less random search; and the last quarters of both, for each seed."""
    pairs = []
    for seed in seeds:
        pair = [accuracies_of(folder(root, name, strategy, seed)) for strategy in ("reinforce", "random")]
        if all(map(len, pair)):
            length = min(map(len, pair))
            pairs.append([accuracies[:length] for accuracies in pair])
    if not pairs:
        return {}
    children = min(len(mine) for mine, _ in pairs)
    lead = {
        str(most): [(best_so_far(mine, most) - best_so_far(other, most))[:children].tolist() for mine, other in pairs]
        for most in TOPS
    }
    quarters = [[float(some[-len(some) // 4 :].mean()) for some in pair] for pair in pairs]
    return {"children": children, "lead_of_best": lead, "last_quarter": quarters}


def cost_of_search(where: Path) -> dict:
    """Trainings of a search, finalists' included, and what they cost: core-hours, and floating-point operations."""
    settings = json.loads((where / "config.json").read_text())["settings"]
    rows, _ = read_ledger(where / "children.jsonl")
    again = (where / "finalists.jsonl").read_text().splitlines() if (where / "finalists.jsonl").exists() else []
    trainings = [*rows.values(), *map(json.loads, again)]
    flops_of = {row["child"]: row["flops"] for row in rows.values()}  # of an image's forward pass
    images = TRAIN_IMAGES * settings["recipe"]["epochs"]
    return {
        "trainings": len(trainings),
        "core_hours": sum(row["seconds"] for row in trainings) / 3600,
        "flops": sum(PASSES * images * flops_of[row["child"]] for row in trainings),
    }


def summarize_finals(where: Path) -> list[dict]:
    """For each final training of a search: the network, its test error, and what all its seeds cost together."""
    rows = []
    files = where.glob("evaluation-*_more_filters.json")
    for file in filter(Path.exists, [where / "evaluation.json", *sorted(files)]):
        result = json.loads(file.read_text())
        n, epochs = len(result["top1"]), result["recipe"]["epochs"]
        row = {name: result[name] for name in ("architecture", "extra_filters", "parameters", "seconds")}
        row |= {"layers": len(parse_architecture(result["architecture"]).layers), "epochs": epochs}
        row |= {"test_error": 1 - result["top1_mean"], "std": result["top1_std"], "n": n}
        rows.append(row | {"flops": n * PASSES * result["flops"] * result["train_images"] * epochs})
    return rows


def draw_lead(comparison: dict) -> Figure:
    """The difference between both searches by children trained: mean over the seeds, and each seed."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for color, most in zip(("tab:blue", "tab:orange", "tab:green"), TOPS, strict=True):
        leads = 100 * np.array(comparison["lead_of_best"][str(most)])  # (seeds, children)
        children = np.arange(1, leads.shape[1] + 1)
        name = "best network" if most == 1 else f"mean of the best {most}"
        axes.plot(children, leads.mean(0), color=color, label=name)
        axes.fill_between(children, leads.min(0), leads.max(0), color=color, alpha=0.15, lw=0)
    axes.axhline(0, color="0.5", lw=0.8)
    axes.set(xlabel="children trained", ylabel="policy gradient less random,\nvalidation accuracy in points")
    axes.set_title(f"mean of {len(leads)} pairs of searches; shaded: from the least to the largest")
    axes.legend()
    return figure


def write_summary(machine: str, root: Path) -> None:
    """Write what the searches and final trainings so far have found and cost, and the figure."""
    name = NAMES[machine]
    result = compare_searches(root, name, SEEDS)
    if not result:
        return
    folders = [folder(root, name, strategy) for strategy in ("reinforce", "random")]
    folders += [root / "cifar10"] if machine == "cpu" else []
    result["runs"] = {
        where.name: {"search": cost_of_search(where), "finals": summarize_finals(where)}
        for where in folders
        if (where / "children.jsonl").exists()
    }
    command = f"python -m benchmarks.cifar10 --machine {machine}"
    write_json(root / f"{name}.json", result | {"command": command} | environment())
    draw_lead(result).savefig(root / f"{name}.png", dpi=120)


# --- tables of pages ----------------------------------------------------------------------------------------------

PAPER_NETWORKS = (  # its Table 1: name, layers, parameters, test error
    ("paper, no strides, no pooling", 15, "4.2 million", "5.50%"),
    ("paper, predicted strides", 20, "2.5 million", "6.01%"),
    ("paper, max-pooling after layers 13 and 24", 39, "7.1 million", "4.47%"),
    ("paper, the same, 40 more filters in each layer", 39, "37.4 million", "3.65%"),
)
OUR_NETWORKS = {
    "here, controller": "cifar10-paper",
    "here, random search": "cifar10-paper-random",
    "here, controller, small space": "cifar10",
}


def cifar10_networks() -> str:
    """The paper's networks and ours; ± over the final trainings."""
    rows = [[*network, "12,800 trainings of 50 epochs", "800 GPUs at a time"] for network in PAPER_NETWORKS]
    for name, search in OUR_NETWORKS.items():
        cost = cost_of_search(RESULTS / search)
        epochs = read(search, "config.json")["settings"]["recipe"]["epochs"]
        trainings = f"{cost['trainings']} trainings of {epochs:g} epochs"
        for final in summarize_finals(RESULTS / search):
            more = f", {final['extra_filters']} more filters" if final["extra_filters"] else ""
            error = f"{100 * final['test_error']:.2f} ± {100 * final['std']:.2f}% (n = {final['n']})"
            parameters = f"{final['parameters'] / 1e6:.2f} million"
            final_cost = f"{final['epochs']:g} epochs: {final['seconds'] / 60:.0f} minutes"
            paid = f"{cost['core_hours']:.2f} core-hours, {cost['flops'] / 1e12:.0f} TFLOP; {final_cost}"
            rows.append([name + more, final["layers"], parameters, error, trainings, paid])
    return table(["network", "layers", "parameters", "test error", "search", "cost of search; final training"], rows)


def cifar10_searches() -> str:
    """Both kinds of search with each seed: validation accuracies in %."""
    rows = []
    for seed in SEEDS:
        for strategy, name in (("reinforce", "controller"), ("random", "random search")):
            where = folder(RESULTS, "cifar10-paper", strategy, seed)
            accuracies = accuracies_of(where)
            best = [f"{100 * best_so_far(accuracies, most)[-1]:.2f}" for most in TOPS]
            quarter = len(accuracies) // 4
            ends = [f"{100 * part.mean():.2f}" for part in (accuracies[:quarter], accuracies[-quarter:])]
            rows.append([seed, name, *ends, *best, spread([read(where, "best.json")["val_accuracy"]])])
    tops = [f"best {most}" for most in TOPS]
    return table(["seed", "", "first quarter", "last quarter", *tops, "the pick"], rows)


def cifar10_references() -> str:
    """The controller's pick and networks that nobody searched for, trained for the same short time."""
    (file,) = (RESULTS / "cifar10-paper").glob("evaluation-c*.json")
    found = json.loads(file.read_text())
    rows = [
        [
            f"{row['name']} (n = {len(row['top1'])})",
            spread(row["top1"]),
            f"{row['parameters']:,.0f}",
            f"{row['epochs']:.2g}",
        ]
        for row in ({"name": "the pick", "epochs": found["recipe"]["epochs"]} | found, *found["references"])
    ]
    return table(["", "test accuracy", "parameters", "epochs"], rows)


TABLES = {f.__name__: f for f in (cifar10_networks, cifar10_searches, cifar10_references)}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", choices=("cpu", "gpu"), default="cpu", help="which experiment (default: cpu)")
    parser.add_argument("--minutes", type=number(float, 0, above=True), help="stop after so long (default: never)")
    parser.add_argument("--rehearse", type=boolean, nargs="?", const=True, help="few images, in runs/rehearsal")
    return parser.parse_args()


@input_errors()
def main() -> None:
    args = parse_arguments()
    root = Path("runs", "rehearsal") if args.rehearse else RESULTS.relative_to(ROOT)
    until = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    for number_of_step in range(len(steps(args.machine, root))):
        command = steps(args.machine, root)[number_of_step]  # anew: what a search returned may be in it
        has_ended = run(shortened(command) if args.rehearse else command, until)
        write_summary(args.machine, ROOT / root)
        if not has_ended:
            print(f"stopped after {args.minutes:g} minutes; the same command goes on from here")
            return


if __name__ == "__main__":
    main()
