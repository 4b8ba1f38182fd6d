"""Neural architecture search with reinforcement learning (Zoph & Le, 2016, arXiv 1611.01578).

python train.py --mode generate                      search: about 10 minutes on two cores
python train.py --mode evaluate --use_cuda True      retrain the best network and test it: about 5 minutes
python train.py --help                               every flag
"""

import argparse
import contextlib
import importlib
import math
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from shlex import quote

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # during the imports below; main() has more to say

import torch
from tqdm import tqdm

import datasets
import utils
from controller import Controller
from datasets import Data
from evaluation import EVALUATION, evaluate, possible_size, within_limits
from model import (
    LEAST_STEPS,
    PAPER_RECIPE,
    ImpossibleNetwork,
    Recipe,
    long_enough,
    network_size,
    train_child,
    training_steps,
)  # fmt: skip
from policy_gradient import PolicyGradient
from search_space import Architecture, PaperSpace, SearchSpace, SmallSpace, parse_architecture
from utils import InputError
from workers import Cluster, TaskFailed, Workers

MAX_LAYERS = 100
PAPER = {  # what --paper sets (§3.2, §4.1); the paper gives no decay of the baseline
    "controller_layers": 2, "hidden_size": 35, "controller_lr": 0.0006, "entropy_weight": 0.0, "replay": 0,
    "children_per_update": 8, "update_lag": 0, "reward_exponent": 3.0, "reward_scale": "none", "num_finalists": 0,
}  # fmt: skip
CHOSEN_BY = "highest sum of the accuracy's rank and what the policy expects of it"
PROGRESS = "reward {reward:.4f}, best {best_reward:.4f}, entropy {entropy:.1f} nats"

# --- search -------------------------------------------------------------------------------------------------------


def generate(args: argparse.Namespace) -> None:
    """Search for an architecture (§3), going on where an earlier run in the same folder stopped."""
    clock = utils.Clock(args.run_dir / "time.json")
    device = "cuda" if args.gpus_per_child else utils.choose_device(args.use_cuda)
    data = datasets.search_data(args.dataset, args.data_dir, args.train_images, args.image_size)
    recipe, space = child_recipe(args, data), make_space(args)
    controller = make_controller(space, args.hidden_size, args.controller_layers, args.seed, args.strategy == "random")
    search = PolicyGradient(controller, **update_settings(args), allowed=make_filter(args, space, data))
    with (
        utils.open_run(args.run_dir, search_config(args, data, recipe, device)) as ledger,
        make_workers(args, data, device) as workers,
        event_writer(args.run_dir) as events,
        tqdm(total=args.num_children, initial=len(ledger.rows), unit="child", dynamic_ncols=True) as bar,
    ):
        save_time = partial(clock.save, workers.num_workers)
        train = partial(workers.submit, train_and_record, workers, recipe, device, args.reward_exponent)
        out, shares = deque(), []
        while out or not search.done(args.num_children):
            while len(out) <= args.update_lag and not search.done(args.num_children):
                batch = search.ask(args.num_children)  # §3.1: the controller writes architectures
                first = len(search.asked) - len(batch)
                rows = [
                    describe(first + i, search.updates + len(search.out) - 1, space, a, args.seed)
                    for i, a in enumerate(batch)
                ]
                out.append((batch, [train(row, ledger, bar) for row in rows]))  # §3.2: those that are new are trained
            batch, trainings = out.popleft()
            rewards = [training.result()["reward"] for training in trainings]
            shares.append(shares_of_choices(search))
            show(search.tell(batch, rewards), events, bar)  # §3.2: REINFORCE
            if bar.n > bar.initial:
                save_time()
        bar.close()
        if not ledger.rows:
            raise InputError(f"{none_within(search, space, data)}: raise --max_parameters or --max_flops")
        if all("error" in row for row in ledger.rows.values()):
            first = ledger.rows[min(ledger.rows)]["error"]
            remedy = "a larger --image_size, fewer --num_layers or --workers, or a longer --child_timeout"
            raise InputError(f"all {len(ledger.rows)} children failed, the first with: {first}; try {remedy}")
        ranking = train_finalists(args, search, ledger.rows, train, save_time)
        save_search(args, controller, ledger.rows, ranking, shares, noise_of_accuracy(ranking, data))
    report(args, ledger.rows, ranking, search, clock, data, recipe)


def describe(child: int, update: int, space: SearchSpace, actions: Sequence[int], seed: int, *purpose: str) -> dict:
    """What is known of a child before it is trained: the first part of its ledger row."""
    architecture = str(space.decode(actions))
    row = {"child": child, "update": update, "actions": list(actions), "architecture": architecture}
    return row | {"seed": utils.child_seed(seed, architecture, *purpose)}


def train_and_record(
    workers: Workers | Cluster, recipe: Recipe, device: str, exponent: float, row: dict, ledger: utils.Ledger, bar: tqdm
) -> dict:
    """The whole row of a child: from the ledger, or trained in a worker process; runs in a thread of its own."""
    if known := ledger.find(row):
        return known
    row = row | attempt(workers, parse_architecture(row["architecture"]), recipe, row["seed"], device)
    row["reward"] = reward(row, exponent)
    ledger.append(row)
    bar.update()
    return row


def reward(row: dict, exponent: float) -> float:
    """What the search maximises, and ranks children by: the accuracy to some power (the paper's cube is 3)."""
    return row["val_accuracy"] ** exponent


def attempt(workers: Workers | Cluster, architecture: Architecture, recipe: Recipe, seed: int, device: str) -> dict:
    """A child's part of its ledger row; one that can't be trained gets accuracy 0 and an `error`."""
    started = time.perf_counter()
    try:
        return workers.run(search_child, architecture, recipe, seed, device)
    except (TaskFailed, ImpossibleNetwork) as error:
        failed = {"val_accuracy": 0.0, "parameters": 0, "flops": 0, "seconds": time.perf_counter() - started}
        return failed | {"error": str(error)}


def search_child(data: Data, architecture: Architecture, recipe: Recipe, seed: int, device: str) -> dict:
    """Runs in a worker process: train a child and measure it on the validation images."""
    trained = train_child(architecture, data, recipe, seed, device)
    size = network_size(architecture, tuple(data.train.pixels.shape[1:]), data.num_classes)
    return {"val_accuracy": trained.accuracy, **size, "seconds": trained.seconds}


def count_finalists(num_children: int, limit: int) -> int:
    """At most a tenth of the children; none if that is one, as there is nothing to choose from."""
    finalists = min(limit, num_children // 10)
    return finalists if finalists > 1 else 0


def train_finalists(
    args: argparse.Namespace, search: PolicyGradient, rows: dict, train: Callable, save_time: Callable
) -> list[dict]:
    """Train the first few of the ranking once more with another seed: one noisy accuracy can't tell them apart.

    Returns their rows, the network to hand over first, with the `val_accuracies` of the trainings that did not fail;
    all rows if there are no finalists.
    """
    ranking = ranked(search, rows.values())
    finalists = [row | {"val_accuracies": [row["val_accuracy"]]} for row in ranking if "error" not in row]
    finalists = finalists[: count_finalists(args.num_children, args.num_finalists)]
    if not finalists:
        return ranking
    ledger = utils.Ledger(args.run_dir / "finalists.jsonl")
    todo = [
        describe(row["child"], row["update"], make_space(args), row["actions"], args.seed, "finalist")
        for row in finalists
    ]
    new = sum(ledger.find(row) is None for row in todo)
    with ledger.file, tqdm(total=new, unit="finalist", dynamic_ncols=True, disable=not new) as bar:
        trainings = [train(row, ledger, bar) for row in todo]
        for finalist, training in zip(finalists, trainings, strict=True):
            again = training.result()
            if new:
                save_time()
            finalist["seconds"] += again["seconds"]
            if "error" not in again:
                finalist["val_accuracies"].append(again["val_accuracy"])
                finalist |= {key: (finalist[key] + again[key]) / 2 for key in ("val_accuracy", "reward")}
    return ranked(search, finalists)


def ranked(search: PolicyGradient, rows: Collection[dict]) -> list[dict]:
    """Rows in the order in which the search would hand over their networks."""
    row_of = {tuple(row["actions"]): row for row in sorted(rows, key=lambda row: row["child"])}
    return [row_of[actions] for actions in search.ranking({a: [row["reward"]] for a, row in row_of.items()})]


# --- from flags to what they describe -----------------------------------------------------------------------------


def depth(args: argparse.Namespace, children: int) -> int:
    """Layers of the networks that are sampled after so many children (§4.1: 6, and 2 more every 1,600)."""
    return args.num_layers + args.layers_step * (children // args.layers_every)


def make_space(args: argparse.Namespace) -> SearchSpace:
    """The space of the deepest networks of a search."""
    layers = depth(args, args.num_children - 1)
    return PaperSpace(layers, args.strides) if args.space == "paper" else SmallSpace(layers)


def make_controller(space: SearchSpace, hidden_size: int, num_layers: int, seed: int, uniform: bool) -> Controller:
    """The controller of a search; for random search one whose policy is exactly uniform."""
    torch.manual_seed(seed)
    controller = Controller(space.num_choices, space.names, hidden_size, num_layers)
    for parameter in controller.parameters() if uniform else ():
        torch.nn.init.zeros_(parameter)
    return controller


def update_settings(args: argparse.Namespace) -> dict:
    """The settings of `PolicyGradient`; for random search it learns nothing."""
    names = ("children_per_update", "update_lag", "entropy_weight", "baseline_decay", "reward_scale", "replay", "seed")
    settings = {name: getattr(args, name) for name in names}
    settings["lr"] = args.controller_lr if args.strategy == "reinforce" else 0.0
    if args.layers_step:
        steps_per_layer = len(make_space(args).decisions)
        settings["num_steps"] = lambda children: steps_per_layer * depth(args, children)
    return settings


def child_recipe(args: argparse.Namespace, data: Data) -> Recipe:
    """How children are trained; on the reader's own images never too short to learn anything, if no length is given."""
    recipe = PAPER_RECIPE if args.child_recipe == "paper" else Recipe()
    if args.child_epochs is not None:
        return replace(recipe, epochs=args.child_epochs)
    return long_enough(recipe, len(data.train.labels))


def make_filter(args: argparse.Namespace, space: SearchSpace, data: Data) -> Callable | None:
    """Whether a sequence of actions describes a network within --max_parameters and --max_flops; None: no limits."""
    if args.max_parameters is None and args.max_flops is None:
        return None

    def allowed(actions: Sequence[int]) -> bool:
        size = possible_size(space.decode(actions), data)
        return size is None or within_limits(size, vars(args))  # an impossible one is trained like any other, and fails

    return allowed


def none_within(search: PolicyGradient, space: SearchSpace, data: Data) -> str:
    """What to say where all sampled networks were above the limits."""
    sizes = [possible_size(space.decode(actions), data) for actions in search.refused]
    least = (f"{min(size[name] for size in sizes):,} {name}" for name in ("parameters", "flops"))
    return f"none of {len(sizes)} networks is within the limits, the smallest have {' and '.join(least)}"


def make_workers(args: argparse.Namespace, data: Data, device: str) -> Workers | Cluster:
    """Processes on this machine, or with --cluster on many."""
    if args.cluster is None:
        return Workers(args.workers, datasets.in_shared_memory(data), args.child_timeout, device)
    try:
        return Cluster(args.cluster, args.workers, data, args.child_timeout, args.gpus_per_child)
    except ImportError:
        raise InputError("--cluster needs Ray: pip install -r requirements-cluster.txt") from None


def search_config(args: argparse.Namespace, data: Data, recipe: Recipe, device: str) -> dict:
    """The content of config.json; `settings` is all that a reward or the order of sampling depends on."""
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    free = ("mode", "data_dir", "run_dir", "workers", "cluster", "gpus_per_child", "use_cuda", "num_children",
            "num_finalists", "architecture", "eval_epochs", "num_seeds", "references", "paper")  # fmt: skip
    settings = {name: value for name, value in flags.items() if name not in free}
    settings |= {"dataset": datasets.short_name(args.dataset), "recipe": asdict(recipe), "device": device}
    settings["version"] = utils.VERSION  # another one may sample and train otherwise
    settings["images"] = None if args.dataset in datasets.BUILT_IN else datasets.fingerprint(data)
    return {"num_children": args.num_children, "settings": settings, "flags": flags} | utils.environment(device)


# --- what a search shows and leaves -------------------------------------------------------------------------------


def event_writer(folder: Path):
    """A TensorBoard writer in the run folder; the events of an earlier run are written anew."""
    from torch.utils.tensorboard import SummaryWriter  # here, because worker processes import this file

    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    return SummaryWriter(folder)


def show(metrics: dict, events, bar: tqdm) -> None:
    """An update's metrics in TensorBoard and beside the progress bar."""
    for name in ("reward", "best_reward", "baseline", "entropy", "loss"):
        events.add_scalar(f"search/{name}", metrics[name], metrics["update"])
    bar.set_postfix_str(PROGRESS.format(**metrics))


def shares_of_choices(search: PolicyGradient) -> list[list[float]]:
    """Share of each choice at each step, T lists, among the latest samples of the policy."""
    actions = search.drawn.actions.T  # (T, samples)
    counts = map(torch.bincount, actions, [None] * len(actions), search.controller.token_choices())
    return [(count / actions.shape[1]).tolist() for count in counts]


def noise_of_accuracy(ranking: list[dict], data: Data) -> float:
    """What two finalists' mean accuracies may differ by without meaning anything: a standard deviation.

    Of one training, told by the finalists' two, or of the validation images, whichever is larger; for these with one
    more image right and one more wrong (Agresti & Coull 1998), so that 100 % of a few images is not certain.
    """
    pairs = [row["val_accuracies"] for row in ranking if len(row.get("val_accuracies", ())) == 2]
    of_training = math.sqrt(sum((a - b) ** 2 / 2 for a, b in pairs) / (len(pairs) or 1))
    n = len(data.held_out.labels)
    accuracy = (n * ranking[0]["val_accuracy"] + 1) / (n + 2)
    return max(of_training, math.sqrt(accuracy * (1 - accuracy) / (n + 2)))


def save_search(
    args: argparse.Namespace, controller: Controller, rows: dict, ranking: list, shares: list, noise: float
) -> None:
    """Write controller.pt, best.json and the pictures."""
    import plots  # here, because worker processes import this file and none needs matplotlib

    rebuild = {"num_choices": controller.num_choices, "names": controller.names}
    rebuild |= {"hidden_size": args.hidden_size, "num_layers": args.controller_layers}
    rebuild["state_dict"] = controller.state_dict()
    utils.write_atomically(args.run_dir / "controller.pt", utils.as_bytes(rebuild))
    best = {key: ranking[0][key] for key in ("architecture", "val_accuracy", "child", "parameters")}
    best |= {
        "dataset": datasets.short_name(args.dataset),
        "seed": args.seed,
        "strategy": args.strategy,
        "children": len(rows),
    }
    best["chosen_by"] = f"{CHOSEN_BY}, of {len(rows)} children"
    if "val_accuracies" in ranking[0]:
        best["chosen_by"] = f"{CHOSEN_BY}, of two trainings, among the first {len(ranking)} of {len(rows)} children"
        best["finalists"] = [{key: row[key] for key in ("architecture", "child", "val_accuracies")} for row in ranking]
    utils.write_json(args.run_dir / "best.json", best)
    ordered = [rows[child] for child in sorted(rows)]
    title = f"{args.strategy} search on {best['dataset']}: {len(rows)} children, seed {args.seed}"
    plots.plot_search(args.run_dir / "search.png", ordered, ranking[0], make_space(args).tokens, shares, title)
    plots.plot_front(args.run_dir / "front.png", with_finalists(rows, ranking), ranking[0], noise, title)
    if args.space == "paper":
        network = parse_architecture(best["architecture"])
        plots.plot_architecture(
            args.run_dir / "best.png", network, "the best network, each arrow in the colour of its source"
        )


def with_finalists(rows: dict, ranking: list[dict]) -> list[dict]:
    """All children; of a finalist the mean accuracy of both its trainings, and the seconds of both."""
    return list((rows | {row["child"]: row for row in ranking}).values())


def smallest(finalists: Sequence[dict], noise: float) -> dict:
    """The finalist with the fewest parameters whose mean accuracy is at most `noise` below the first one's."""
    good = (row for row in finalists if row["val_accuracy"] >= finalists[0]["val_accuracy"] - noise)
    return min(good, key=lambda row: (row["parameters"], row["child"]))


def report(
    args: argparse.Namespace,
    rows: dict,
    ranking: list,
    search: PolicyGradient,
    clock: utils.Clock,
    data: Data,
    recipe: Recipe,
) -> None:
    """Print what a search found, what it cost, and how to go on."""
    finalists = [row for row in ranking if "val_accuracies" in row]
    failed = sum("error" in row for row in rows.values()) + sum(len(row["val_accuracies"]) < 2 for row in finalists)
    wall, slots, main_cpu = (clock.total[key] for key in ("wall", "workers", "main_cpu"))
    trainings = with_finalists(rows, ranking)
    busy, overhead = sum(row["seconds"] for row in trainings) / (slots or 1), main_cpu / (wall or 1)
    if search.stopped_early and len(rows) < args.num_children:
        print(f"ended after {len(rows)} of {args.num_children} children: {search.stopped_early}")
    print(f"best architecture   {ranking[0]['architecture']}   validation accuracy {ranking[0]['val_accuracy']:.2%}")
    print(f"chosen by           the {CHOSEN_BY}")
    for place, row in enumerate(ranking[:5], start=1):
        line = "  {}. {architecture}   {val_accuracy:.2%}{both}   {parameters:,} parameters   child {child}"
        both = " = mean of " + ", ".join(f"{a:.2%}" for a in row["val_accuracies"]) if finalists else ""
        print(line.format(place, both=both, **row))
    twice = f", the best {len(finalists)} twice" if finalists else ""
    print(f"children            {len(rows)} trained{twice} ({failed} failed)")
    batch_size, _, steps = training_steps(recipe, len(data.train.labels))
    n, noise = len(data.held_out.labels), noise_of_accuracy(ranking, data)
    print(f"each training       {steps} steps of {batch_size} images")
    same = data.held_out.labels.bincount().max().item() / n
    print(
        f"each accuracy       of {n:,} validation images: steps of {1 / n:.2%}; always the same class gives {same:.2%}"
    )
    print(f"differences         of less than {2 * noise:.2%} between two networks mean nothing")
    if finalists:
        line = "smallest as good    {architecture}   {val_accuracy:.2%}   {parameters:,} parameters   child {child}"
        print(f"{line.format(**smallest(finalists, noise))} (a finalist, within {noise:.2%} of the best)")
    if search.refused:
        print(f"above the limits    {len(search.refused)} networks sampled, not trained")
    if again := search.samples - len(rows):
        print(f"samples             {search.samples}, {again} of them sampled before and not trained again")
    used = f"workers training {busy:.1%} of it, search overhead {overhead:.1%}"
    print(f"time                {utils.duration(wall)}; {used}")
    events = f"tensorboard --logdir {quote(str(args.run_dir))}"
    print(f"files               {args.run_dir}/ (search.png, front.png; {events})")
    usual = {"dataset": "MNIST", "data_dir": Path(utils.from_here("data")), "image_size": None, "child_recipe": "fast"}
    usual |= {"run_dir": utils.default_run_dir(datasets.short_name(args.dataset))}
    flags = [f" --{name} {quote(str(getattr(args, name)))}" for name in usual if getattr(args, name) != usual[name]]
    print(f"evaluate it with    python {quote(utils.from_here('train.py'))} --mode evaluate{''.join(flags)}")


# --- command line -------------------------------------------------------------------------------------------------


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults other than None, and keeps the lines of the description."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without a page of usage."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {' '.join(message.splitlines())} (--help lists the flags)\n")


def number(kind: type, low: float, high: float = 2**31, above: bool = False) -> Callable[[str], float]:
    """A flag's type: an int or a float from `low` (if `above`: without it) to `high`."""
    what = f"{'a whole number' if kind is int else 'a number'} {'above' if above else 'from'} {low:g} to {high:g}"

    def convert(text: str) -> float:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if low < value <= high or (value == low and not above):
                return value
        raise argparse.ArgumentTypeError(f"must be {what}, not {text!r}")

    return convert


count, size = number(int, 1), number(int, 1, 1000)
positive = number(float, 0, above=True)


def boolean(text: str) -> bool:
    """A flag's type: true or false, as people write them."""
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise argparse.ArgumentTypeError(f"must be True or False, not {text!r}")
    return text.lower() in ("true", "1", "yes")


def architecture(text: str) -> Architecture:
    """A flag's type: an architecture's text form."""
    try:
        return parse_architecture(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def path(text: str) -> Path:
    """A flag's type: a path, which may begin with ~."""
    return Path(os.path.expanduser(text))


def dataset(text: str) -> str:
    """A flag's type: a built-in data set, or where the reader's own images are."""
    text = os.path.expanduser(text)
    if text in datasets.BUILT_IN or Path(text).is_dir() or (Path(text).is_file() and text.lower().endswith(".npz")):
        return text
    if not Path(text).exists():
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(datasets.BUILT_IN)}, and no file or folder")
    what = "a folder with a folder of pictures for each class, or an .npz file"
    raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(datasets.BUILT_IN)}, and not {what}")


def make_parser() -> Parser:
    """Every setting of the program, in one place."""
    parser = Parser("train.py", description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    switch = {"type": boolean, "nargs": "?", "const": True, "default": False}
    # fmt: off
    add = parser.add_argument_group("what to do").add_argument
    add("--mode", choices=("generate", "evaluate"), default="generate",
        help="generate: search; evaluate: train the best network on all images, and test it")
    add("--dataset", type=dataset, default="MNIST",
        help=f"{', '.join(datasets.BUILT_IN)}, or the path of your own images: a folder with a folder of pictures "
        "for each class, or an .npz file")
    add("--image_size", type=size, metavar="PIXELS",
        help=f"resize your own images to a square (default: as they are; {datasets.IMAGE_SIZE}, if they differ or are "
        f"larger than {datasets.LARGE})")
    add("--data_dir", type=path, default=utils.from_here("data"),
        help="where the built-in data sets are, or are downloaded to")
    add("--run_dir", type=path, help="folder of the search's files (default: runs/<dataset>, or runs/<dataset>-random)")
    add("--use_cuda", **switch, help="train on the GPU: True or False")
    add("--workers", type=size,
        help="processes that train networks; changes no result (default: one a core, 4 with CUDA)")
    add("--cluster", metavar="ADDRESS", help="search on a Ray cluster: auto, its host:port, or local: this machine")
    add("--gpus_per_child", type=number(float, 0, 1), default=0.0, help="with --cluster: share of a GPU, such as 0.25")
    add("--seed", type=number(int, 0), default=0, help="random seed of the whole run; run several searches with "
        "different ones to compare settings")

    add = parser.add_argument_group("search").add_argument
    add("--strategy", choices=("reinforce", "random"), default="reinforce",
        help="random: uniform random search, to compare with")
    add("--space", choices=("small", "paper"), default="small",
        help="small: square filters, 729 networks with 2 layers; paper: rectangular filters and skip connections "
        "(§3.3, §4.1)")
    add("--strides", **switch, help="--space paper: choose the strides of each layer from 1 to 3, too")
    add("--num_layers", type=number(int, 1, MAX_LAYERS), default=2, help="convolutions in a child (paper: 6, growing)")
    add("--layers_step", type=number(int, 0, 100), default=0,
        help="grow: add so many layers every --layers_every children (paper: 2)")
    add("--layers_every", type=count, default=1600, help="children between two growths of the depth by --layers_step")
    add("--num_children", type=count, default=80, help="budget: distinct networks to train")
    add("--max_parameters", type=count, help="skip larger networks, at no cost of the budget (default: no limit)")
    add("--max_flops", type=count, help="the same for the floating-point operations of one image (default: no limit)")
    add("--num_finalists", type=number(int, 0), default=20,
        help="train the best ones once more before choosing: one accuracy is noisy (at most a tenth of the children)")
    add("--children_per_update", type=count, default=2,
        help="networks sampled for each update; more: steadier updates, but fewer (paper: 8)")
    add("--update_lag", type=number(int, 0), default=4,
        help="keep so many more batches in training, LAG + 1 in all: more workers stay busy, but networks are sampled "
        "from an older policy")

    add = parser.add_argument_group("controller and policy gradient").add_argument
    add("--paper", **switch,
        help="the paper's controller and update (batches of 8; no lag, ranks, replay), no finalists; for thousands "
        "of children (docs/method.md)")
    add("--hidden_size", type=size, default=64, help="units of each LSTM layer of the controller (paper: 35)")
    add("--controller_layers", type=size, default=1, help="LSTM layers of the controller (paper: 2)")
    add("--controller_lr", type=number(float, 0), default=0.02,
        help="Adam's learning rate: how far an update moves the policy (paper: 0.0006)")
    add("--entropy_weight", type=number(float, 0), default=0.7,
        help="exploration: what the entropy of a uniform policy is worth, for rewards of standard deviation 1; "
        "more explores more (paper: 0)")
    add("--baseline_decay", type=number(float, 0, 1), default=0.5,
        help="how slowly the moving average forgets; 0: only the last batch; near 1: long memory")
    add("--reward_exponent", type=positive, default=1.0,
        help="reward = accuracy to this power; ranks stay the same, see --reward_scale (paper: 3)")
    add("--replay", type=number(int, 0), default=1000,
        help="the latest so many children are learned from in every update; 0: only the batch, with repeats (paper: 0)")
    add("--reward_scale", choices=("rank", "none"), default="rank",
        help="learn from the rank among the rewards so far, or from the reward itself (paper: none)")

    add = parser.add_argument_group("children").add_argument
    add("--child_recipe", choices=("fast", "paper"), default="fast",
        help="how networks are trained, in evaluate too; paper: SGD for 50 epochs with crops and flips")
    add("--child_epochs", type=positive,
        help=f"passes over the training images (default: {Recipe.epochs}, of your own at least {LEAST_STEPS} steps of "
        f"{Recipe.batch_size} images; paper: 50)")
    add("--child_timeout", type=positive, help="seconds after which a training ends with reward 0 (default: no limit)")
    add("--train_images", type=number(int, 2), help="train on so many images only, for quick trials (default: all)")

    add = parser.add_argument_group("evaluate").add_argument
    add("--architecture", type=architecture,
        help="train this network, such as k5f16p0-k5f32p1 (default: the best of the search)")
    add("--eval_epochs", type=positive, help=f"passes over the images (default: "
        f"{EVALUATION.epochs:g}, of your own at least {LEAST_STEPS} steps; never fewer than in the search; paper: 50)")
    add("--num_seeds", type=count, default=4, help="trainings with different seeds, to average over")
    add("--references", **switch,
        help="also train networks that nobody searched for: LeNet-5's layers, the largest, ten random ones")
    # fmt: on
    return parser


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The settings of this run; what contradicts itself ends the program with one line."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if args.paper:  # flags that are given win
        parser.set_defaults(**PAPER)
        args = parser.parse_args(arguments)
    given = {argument.split("=")[0] for argument in (sys.argv[1:] if arguments is None else arguments)}
    modes = {"search": "generate", "controller and policy gradient": "generate", "evaluate": "evaluate"}
    for action in parser._actions:
        flag, mode = action.option_strings[0], modes.get(action.container.title, args.mode)
        if args.mode != mode and flag in given and flag != "--strategy":  # which names evaluate's folder
            parser.error(f"argument {flag}: only --mode {mode} has it")
    args.workers = args.workers or (4 if args.use_cuda and torch.cuda.is_available() else utils.usable_cores())
    if args.dataset in datasets.BUILT_IN:
        args.child_epochs = args.child_epochs or (PAPER_RECIPE if args.child_recipe == "paper" else Recipe).epochs
        if args.image_size:
            parser.error("argument --image_size: only your own images are resized")
    if args.strides and args.space != "paper":
        parser.error("argument --strides: only --space paper has them")
    if depth(args, args.num_children - 1) > MAX_LAYERS:
        parser.error(f"argument --layers_step: networks would grow beyond {MAX_LAYERS} layers")
    first = make_space(argparse.Namespace(**vars(args) | {"layers_step": 0}))
    if args.layers_step and math.prod(len(choices) for *_, choices in first.tokens) < args.layers_every:
        parser.error(f"argument --layers_every: there are fewer networks of {args.num_layers} layers than that")
    if args.cluster and args.mode == "evaluate":
        parser.error("argument --cluster: --mode evaluate trains on this machine")
    if args.gpus_per_child and not args.cluster:
        parser.error("argument --gpus_per_child: only --cluster shares GPUs")
    if args.cluster and args.use_cuda and not args.gpus_per_child:
        parser.error("argument --use_cuda: with --cluster say how much of a GPU a child gets, as --gpus_per_child 0.25")
    args.run_dir = args.run_dir or utils.default_run_dir(datasets.short_name(args.dataset), args.strategy)
    return args


def main(arguments: list[str] | None = None) -> None:
    """Run the program; what the user can put right is one line and exit code 2."""
    with contextlib.suppress(AttributeError):  # in notebooks
        sys.stdout.reconfigure(errors="backslashreplace")  # what can't be printed in ASCII stops nothing
    args = parse_arguments(arguments)
    torch.set_num_threads(1)  # the search's arithmetic must not depend on the machine's load
    if args.reward_exponent != 1 and args.reward_scale == "rank":
        print("note: --reward_exponent changes no rank, and the policy learns from ranks (see --reward_scale)")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        utils.check_writable(args.run_dir)
        for module in ("plots", "torch.utils.tensorboard"):  # a missing package is missed now, not after all children
            importlib.import_module(module)  # here, because worker processes import this file
        generate(args) if args.mode == "generate" else evaluate(args)
    except (InputError, ImpossibleNetwork, ImportError, OSError, MemoryError, RuntimeError) as error:
        print(f"train.py: {utils.explained(error, args.run_dir)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        again = "the same command goes on from here" if args.mode == "generate" else "what was written is whole"
        print(f"train.py: stopped; {again}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
