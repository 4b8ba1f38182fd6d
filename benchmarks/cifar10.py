"""The paper's experiment on CIFAR-10, as far as a machine goes: searches, final trainings, and a figure as its Fig. 6.

    python -m benchmarks.cifar10                        two cores: the searches and trainings of docs/cifar10.md, five hours
    python -m benchmarks.cifar10 --machine gpu          one GPU: deeper networks and longer trainings, not measured yet
    python -m benchmarks.cifar10 --minutes 8            stops after so long; the same command goes on from there, but
                                                        trainings that have not ended begin anew
    python -m benchmarks.cifar10 --rehearse True        all commands with a few images, in runs/rehearsal

Each step is a command of train.py, which is printed, so that it can be copied. Its files stand in results/cifar10*/. A
search that has ended before takes seconds, and so does a final training whose folder finals*/ is there; a clone has none.
After each step it writes results/cifar10-paper.json and .png, for a GPU results/cifar10-gpu.json and .png: how the
searches compare, and what those with seed 0 and their final trainings cost.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
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

# The spaces of the searches, and how networks are trained
CPU_SPACE = split("--space paper --num_layers 6 --pooling 2 --max_flops 60000000 --precision bfloat16")
CPU_SEARCH = [*CPU_SPACE, "--num_children", "120", "--child_epochs", "0.2"]
CPU_FINAL = split("--eval_epochs 40 --num_seeds 2 --precision bfloat16")
CPU_SHORT_FINAL = split("--eval_epochs 8 --num_seeds 2 --precision bfloat16")
GPU_SPACE = split("--use_cuda True --workers 8 --space paper --num_layers 15 --pooling 2 --precision bfloat16")
GPU_SEARCH = [*GPU_SPACE, "--num_children", "200", "--child_epochs", "1"]
GPU_FINAL = split("--use_cuda True --eval_epochs 60 --num_seeds 2 --precision bfloat16")
MORE_FILTERS = ["--extra_filters", "40"]  # the paper's last step
HAND_MADE = "c3x3f36-c3x3f36mi1-c3x3f36i1.2-c3x3f36mi2.3-c3x3f36i3.4-c3x3f36i4.5"  # each layer on the two before it


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


def steps(machine: str, root: Path) -> Iterator[list[str]]:
    """The commands of an experiment, in the order in which they are run: a later one may read what an earlier wrote."""
    name = NAMES[machine]
    final = GPU_FINAL if machine == "gpu" else CPU_FINAL
    of_controller = final_training(root, name, final, "reinforce")
    of_random_search = final_training(root, name, final, "random")
    if machine == "gpu":
        yield from searches(root, name, GPU_SEARCH, [0])
        yield of_controller
        yield of_random_search
        yield [*of_controller, *MORE_FILTERS]
        yield [*of_random_search, *MORE_FILTERS]
        return
    small = ["--run_dir", str(root / "cifar10")]
    yield ["--mode", "generate", *DATASET, "--num_layers", "4", *small]
    yield ["--mode", "evaluate", *DATASET, *small]
    yield from searches(root, name, CPU_SEARCH, SEEDS)
    yield of_controller
    yield [*of_controller, *MORE_FILTERS]
    first = folder(root, name)
    yield short_final_training(first, HAND_MADE)
    for seed in SEEDS:
        for strategy in ("reinforce", "random"):
            where = folder(root, name, strategy, seed)
            references = ["--references", "True"] if where == first else []
            yield [*short_final_training(where, pick_of(where)), *references]


def short_final_training(where: Path, architecture: str) -> list[str]:
    """The command that trains a network for eight epochs; it is named, so that no longer training is replaced."""
    return ["--mode", "evaluate", *DATASET, *CPU_SHORT_FINAL, "--run_dir", str(where), "--architecture", architecture]


def pick_of(where: Path) -> str:
    """The text form of the network that a search returned."""
    return json.loads((where / "best.json").read_text())["architecture"]


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
        process.terminate()  # it ends in order; SIGINT would be ignored in the background of a script
        process.wait()
        return False
    if status:
        raise InputError(f"this command ended with exit code {status}, see above; the same command goes on from here")
    return True


def mean_of_best(accuracies: np.ndarray, k: int) -> np.ndarray:
    """After each child, the mean of the k best accuracies so far (n,), or of all if they are fewer."""
    return np.array([np.sort(accuracies[: n + 1])[-k:].mean() for n in range(len(accuracies))])


def quarters(values: np.ndarray) -> tuple[float, float]:
    """The means of the first and of the last quarter of some values (n,)."""
    quarter = max(1, len(values) // 4)
    return float(values[:quarter].mean()), float(values[-quarter:].mean())


def column(where: Path, name: str) -> np.ndarray:
    """A number of each of a search's children that could be trained, in the order of sampling (n,)."""
    rows, _ = read_ledger(where / "children.jsonl")
    return np.array([rows[child][name] for child in sorted(rows) if "error" not in rows[child]])


def accuracies_of(where: Path) -> np.ndarray:
    """The validation accuracies of a search's children, in the order of sampling (n,)."""
    return column(where, "val_accuracy")


def flops_of(where: Path) -> np.ndarray:
    """Floating-point operations of one image in a search's networks, in the order of sampling (n,)."""
    return column(where, "flops")


def compare_searches(root: Path, name: str, seeds: Sequence[int]) -> dict:
    """By children trained, policy gradient minus random search; and the last quarters of both, for each seed."""
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
        str(k): [(mean_of_best(mine, k) - mean_of_best(other, k))[:children].tolist() for mine, other in pairs]
        for k in TOPS
    }
    last = [[quarters(accuracies)[1] for accuracies in pair] for pair in pairs]
    return {"children": children, "lead_of_best": lead, "last_quarter": last}


def leads_at_equal_size(root: Path, name: str, seeds: Sequence[int]) -> list[float]:
    """For each seed how far the controller's last quarter would be ahead of random search's if sizes were equal.

    What size is worth is a parabola in the logarithm of the FLOPs, fitted to all networks of random search.
    """
    random = [folder(root, name, "random", seed) for seed in seeds]
    sizes = np.concatenate([np.log(flops_of(where)) for where in random])
    parabola = np.polyfit(sizes, np.concatenate([accuracies_of(where) for where in random]), 2)

    def last_beyond_size(where: Path) -> float:
        return quarters(accuracies_of(where) - np.polyval(parabola, np.log(flops_of(where))))[1]

    of_controller = [last_beyond_size(folder(root, name, "reinforce", seed)) for seed in seeds]
    of_random_search = [last_beyond_size(where) for where in random]
    return [one - other for one, other in zip(of_controller, of_random_search, strict=True)]


def cost_of_search(where: Path) -> dict:
    """Trainings of a search, finalists' included, and what they cost: hours, and floating-point operations.

    The hours are of one core, or of a GPU that all workers share. A network whose feature maps would vanish is not
    trained.
    """
    settings = json.loads((where / "config.json").read_text())["settings"]
    children, finalists = (read_ledger(where / name)[0] for name in ("children.jsonl", "finalists.jsonl"))
    trainings = [row for row in (*children.values(), *finalists.values()) if "error" not in row]
    images = (settings["train_images"] or TRAIN_IMAGES) * settings["recipe"]["epochs"]
    if settings["device"] == "cpu":
        hours = {"core_hours": sum(row["seconds"] for row in trainings) / 3600}
    else:
        hours = {"gpu_hours": json.loads((where / "time.json").read_text())["wall"] / 3600}
    return {
        "trainings": len(trainings),
        **hours,
        "flops": sum(PASSES * images * row["flops"] for row in trainings),  # a row has those of a forward pass
    }


def summarize_finals(where: Path) -> list[dict]:
    """For each final training of a search: the network, its test error, and what all its seeds cost together."""
    files = sorted(where.glob("evaluation-[0-9]*_more_filters.json"))  # those of other networks begin with a letter
    rows = []
    for file in filter(Path.exists, [where / "evaluation.json", *files]):
        result = json.loads(file.read_text())
        n, epochs = len(result["top1"]), result["recipe"]["epochs"]
        rows.append(
            {
                "architecture": result["architecture"],
                "extra_filters": result["extra_filters"],
                "layers": len(parse_architecture(result["architecture"]).layers),
                "parameters": result["parameters"],
                "test_error": 1 - result["top1_mean"],
                "std": result["top1_std"],
                "n": n,
                "epochs": epochs,
                "seconds": result["seconds"],
                "flops": n * PASSES * result["flops"] * result["train_images"] * epochs,
            }
        )
    return rows


def draw_lead(comparison: dict) -> Figure:
    """The difference between both searches by children trained: mean over the seeds, and each seed."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for color, k in zip(("tab:blue", "tab:orange", "tab:green"), TOPS, strict=True):
        leads = 100 * np.array(comparison["lead_of_best"][str(k)])  # (seeds, children)
        children = np.arange(1, leads.shape[1] + 1)
        name = "best network" if k == 1 else f"mean of the best {k}"
        axes.plot(children, leads.mean(0), color=color, label=name)
        axes.fill_between(children, leads.min(0), leads.max(0), color=color, alpha=0.15, lw=0)
    axes.axhline(0, color="0.5", lw=0.8)
    axes.set(xlabel="children trained", ylabel="controller minus random search,\nvalidation accuracy in points")
    axes.set_title(f"mean of {len(leads)} pairs of searches; shaded: minimum to maximum")
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
OUR_NETWORKS = {"here, controller": "cifar10-paper", "here, controller, small space": "cifar10"}


def cifar10_networks() -> str:
    """The paper's networks and ours; ± over the final trainings."""
    rows = [
        [*network, "12,800 trainings of 50 epochs", "800 GPUs at a time", "not given"] for network in PAPER_NETWORKS
    ]
    for name, search in OUR_NETWORKS.items():
        cost = cost_of_search(RESULTS / search)
        epochs = read(search, "config.json")["settings"]["recipe"]["epochs"]
        for final in summarize_finals(RESULTS / search):
            more = f", {final['extra_filters']} more filters" if final["extra_filters"] else ""
            trainings = f"{final['n']} of {final['epochs']:g} epochs"
            rows.append(
                [
                    name + more,
                    final["layers"],
                    f"{final['parameters'] / 1e6:.2f} million",
                    f"{100 * final['test_error']:.2f} ± {100 * final['std']:.2f}% (n = {final['n']})",
                    f"{cost['trainings']} trainings of {epochs:g} epochs",
                    f"{cost['core_hours']:.2f} core-hours, {cost['flops'] / 1e12:.0f} TFLOP",
                    f"{trainings}: {final['seconds'] / 60:.0f} minutes, {final['flops'] / 1e12:,.0f} TFLOP",
                ]
            )
    return table(["network", "layers", "parameters", "test error", "search", "its cost", "final trainings"], rows)


def cifar10_searches() -> str:
    """Both kinds of search with each seed: validation accuracies in %, and the size of the last networks."""
    rows = []
    for seed in SEEDS:
        for strategy, name in (("reinforce", "controller"), ("random", "random search")):
            where = folder(RESULTS, "cifar10-paper", strategy, seed)
            accuracies = accuracies_of(where)
            ends = [f"{100 * mean:.2f}" for mean in quarters(accuracies)]
            size = f"{quarters(flops_of(where))[1] / 1e6:.0f}"
            best = [f"{100 * mean_of_best(accuracies, k)[-1]:.2f}" for k in TOPS]
            pick = f"{100 * read(where, 'best.json')['val_accuracy']:.2f}"
            rows.append([seed, name, *ends, size, *best, pick])
    header = ["seed", "", "first quarter", "last quarter", "its MFLOPs", *(f"best {k}" for k in TOPS), "the pick"]
    return table(header, rows)


def after_eight_epochs(where: Path, architecture: str) -> dict:
    """What evaluate wrote of a network that was trained for eight epochs."""
    return read(where, f"evaluation-{architecture}.json")


def cifar10_picks() -> str:
    """The picks of both kinds of search, trained for eight epochs: test accuracies in %."""
    rows = []
    for seed in SEEDS:
        for strategy, name in (("reinforce", "controller"), ("random", "random search")):
            where = folder(RESULTS, "cifar10-paper", strategy, seed)
            found = after_eight_epochs(where, pick_of(where))
            accuracy = f"{spread(found['top1'])} (n = {len(found['top1'])})"
            rows.append([seed, name, accuracy, f"{found['parameters']:,}", f"{found['flops'] / 1e6:.0f}"])
    return table(["seed", "", "test accuracy", "parameters", "MFLOPs"], rows)


def cifar10_references() -> str:
    """The controller's pick and networks that nobody searched for, trained for the same short time."""
    where = RESULTS / "cifar10-paper"
    pick, hand_made = (after_eight_epochs(where, network) for network in (pick_of(where), HAND_MADE))
    named = [
        result | {"name": name, "epochs": result["recipe"]["epochs"]}
        for name, result in (("the pick", pick), ("six equal layers", hand_made))
    ]
    rows = []
    for row in (*named, *pick["references"]):
        label = f"{row['name']} (n = {len(row['top1'])})"
        rows.append([label, spread(row["top1"]), f"{row['parameters']:,.0f}", f"{row['epochs']:.2g}"])
    return table(["", "test accuracy", "parameters", "epochs"], rows)


TABLES = {f.__name__: f for f in (cifar10_networks, cifar10_searches, cifar10_picks, cifar10_references)}


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
    for command in steps(args.machine, root):
        has_ended = run(shortened(command) if args.rehearse else command, until)
        write_summary(args.machine, ROOT / root)
        if not has_ended:
            print(f"stopped after {args.minutes:g} minutes; the same command goes on from here")
            return


if __name__ == "__main__":
    main()
