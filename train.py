"""Neural architecture search with reinforcement learning (Zoph & Le, 2016, arXiv 1611.01578) on MNIST.

python train.py --mode generate                      search: about 11 minutes on two cores
python train.py --mode evaluate --use_cuda True      retrain the best network and test it: about 5 minutes
python train.py --help                               every flag
"""

import argparse
import io
import itertools
import math
import signal
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm

import utils
from controller import Controller
from model import (
    PAPER_RECIPE,
    Architecture,
    Child,
    Images,
    Recipe,
    SearchSpace,
    parse_architecture,
    summarize,
    train_child,
)
from policy_gradient import PolicyGradient
from utils import InputError
from workers import Cluster, TaskFailed, Workers

EVALUATION = Recipe(epochs=4, shift=1)
MAX_LAYERS = 100
PROGRESS = "reward {reward:.4f}, best {best_reward:.4f}, baseline {baseline:+.2f}, entropy {entropy:.2f}"

# --- search -------------------------------------------------------------------------------------------------------


def generate(args: argparse.Namespace) -> None:
    """Search for an architecture (§3), going on where an earlier run in the same folder stopped."""
    clock = utils.Clock(args.run_dir / "time.json")
    device = "cuda" if args.gpus_per_child else utils.choose_device(args.use_cuda)
    recipe = make_recipe(args, Recipe(), args.child_epochs)
    space = make_space(args)
    controller = make_controller(args, space)
    images, num_classes = utils.load_images(args.dataset, args.data_dir, train=True)
    data = (*utils.hold_out(images, args.train_images), num_classes)
    child_numbers = itertools.count()

    with (
        utils.open_run(args.run_dir, search_config(args, recipe, device)) as ledger,
        make_workers(args, data) as workers,
        tqdm(total=args.num_children, initial=len(ledger.rows), unit="child", dynamic_ncols=True) as bar,
    ):

        def evaluate(actions: tuple[int, ...]) -> float | Future:
            """The reward of a child that the ledger knows, otherwise a Future of it."""
            architecture = space.decode(actions)
            row = {"child": next(child_numbers), "update": policy_gradient.batches, "actions": list(actions)}
            row |= {"architecture": str(architecture), "seed": utils.child_seed(args.seed, str(architecture))}
            known = ledger.find(row)
            return known["reward"] if known else workers.submit(train_and_record, ledger, row, bar)

        def train_and_record(ledger: utils.Ledger, row: dict, bar: tqdm) -> float:
            """Train a child in a worker process, write its row, return its reward; runs in a thread of its own."""
            row |= attempt(workers, parse_architecture(row["architecture"]), recipe, row["seed"], device)
            row["reward"] = row["val_accuracy"] ** args.reward_exponent  # 1: the accuracy; the paper's cube is 3
            ledger.append(row)
            bar.update()
            return row["reward"]

        policy_gradient = make_policy_gradient(args, controller, evaluate)
        shares = [controller.preferences()]
        with event_writer(args.run_dir) as events:
            for metrics in policy_gradient.search(args.num_children):
                for name in ("reward", "best_reward", "baseline", "entropy", "loss"):
                    events.add_scalar(f"search/{name}", metrics[name], metrics["update"])
                shares.append(controller.preferences())
                bar.set_postfix_str(PROGRESS.format(**metrics))
                if bar.n > bar.initial:
                    clock.save(workers.num_workers)
        bar.close()
        ranking = train_finalists(args, ledger.rows, workers, train_and_record, clock)
        save_search(args, controller, ledger.rows, ranking, shares)
    report(args, ledger.rows, ranking, policy_gradient, clock)


def depth(args: argparse.Namespace, children: int) -> int:
    """Layers of the networks that are sampled after so many children (§4.1: 6, and 2 more every 1,600)."""
    return args.num_layers + args.layers_step * (children // args.layers_every)


def make_space(args: argparse.Namespace) -> SearchSpace:
    """The space of the deepest networks of a search."""
    return SearchSpace(depth(args, args.num_children - 1), args.space == "paper", args.strides)


def make_recipe(args: argparse.Namespace, fast: Recipe, epochs: float | None) -> Recipe:
    """How children are trained: the paper's way or the `fast` one, for so many epochs or as many as is usual there."""
    recipe = PAPER_RECIPE if args.child_recipe == "paper" else fast
    return replace(recipe, epochs=epochs or recipe.epochs)


def count_finalists(args: argparse.Namespace) -> int:
    """At most a tenth of the children."""
    return min(args.num_finalists, args.num_children // 10)


def train_finalists(
    args: argparse.Namespace, rows: dict, workers: Workers | Cluster, train: Callable, clock: utils.Clock
) -> list:
    """Train the best few children once more with another seed: one noisy accuracy can't tell them apart.

    Returns their rows, the best mean of `val_accuracies` first; without finalists all rows, the best first.
    """
    ranking = [row | {"val_accuracies": [row["val_accuracy"]]} for row in utils.ranked(rows)]
    if not count_finalists(args):
        return ranking
    ledger, finalists = utils.Ledger(args.run_dir / "finalists.jsonl"), ranking[: count_finalists(args)]
    todo = [{key: row[key] for key in ("child", "update", "actions", "architecture")} for row in finalists]
    todo = [row | {"seed": utils.child_seed(args.seed + 1, row["architecture"])} for row in todo]
    todo = [row for row in todo if not ledger.find(row)]
    with ledger.file, tqdm(total=len(todo), unit="finalist", dynamic_ncols=True, disable=not todo) as bar:
        for job in [workers.submit(train, ledger, row, bar) for row in todo]:
            job.result()
            clock.save(workers.num_workers)
    for finalist in finalists:
        again = ledger.rows[finalist["child"]]
        finalist["val_accuracies"].append(again["val_accuracy"])
        finalist["val_accuracy"] = statistics.fmean(finalist["val_accuracies"])
        finalist["seconds"] += again["seconds"]
    return utils.ranked({row["child"]: row for row in finalists})


def make_controller(args: argparse.Namespace, space: SearchSpace) -> Controller:
    """The controller of a search; for random search one whose policy is, and stays, exactly uniform."""
    torch.manual_seed(args.seed)
    num_choices, names = [len(d.choices) for d in space.decisions], [d.name for d in space.decisions]
    controller = Controller(num_choices, names, args.hidden_size, args.controller_layers)
    if args.strategy == "random":
        for parameter in controller.parameters():
            torch.nn.init.zeros_(parameter)
    return controller


def make_policy_gradient(args: argparse.Namespace, controller: Controller, evaluate: Callable) -> PolicyGradient:
    """The search that the flags describe; for random search one that learns nothing."""
    names = ("children_per_update", "update_lag", "entropy_weight", "baseline_decay", "reward_scale", "seed")
    settings = {name: getattr(args, name) for name in (*names, "importance_weights")}
    settings["lr"] = args.controller_lr if args.strategy == "reinforce" else 0.0
    if args.layers_step:
        steps_per_layer = len(make_space(args).layer_decisions)
        settings["num_steps"] = lambda children: steps_per_layer * depth(args, children)
    return PolicyGradient(controller, evaluate, **settings)


def make_workers(args: argparse.Namespace, data: tuple) -> Workers | Cluster:
    """Processes on this machine, or with --cluster on many."""
    if args.cluster is None:
        return Workers(args.workers, in_shared_memory(data), args.child_timeout)
    under_way = args.children_per_update * (args.update_lag + 1)
    try:
        return Cluster(args.cluster, args.workers, under_way, data, args.child_timeout, args.gpus_per_child)
    except ImportError:
        raise InputError("--cluster needs Ray: pip install -r requirements-cluster.txt") from None


def attempt(workers: Workers | Cluster, architecture: Architecture, recipe: Recipe, seed: int, device: str) -> dict:
    """A child's part of its ledger row; one that can't be trained gets accuracy 0 and an `error`."""
    started = time.perf_counter()
    try:
        return workers.run(search_child, architecture, recipe, seed, device)
    except (TaskFailed, ValueError) as error:
        failed = {"val_accuracy": 0.0, "parameters": 0, "seconds": time.perf_counter() - started}
        return failed | {"error": str(error)}


def search_child(data: tuple, architecture: Architecture, recipe: Recipe, seed: int, device: str) -> dict:
    """Runs in a worker process: train a child and measure it on the validation images."""
    train, validation, num_classes = data
    trained = train_child(architecture, train, validation, num_classes, recipe, seed, device)
    return {"val_accuracy": trained.accuracy, "parameters": trained.parameters, "seconds": trained.seconds}


def search_config(args: argparse.Namespace, recipe: Recipe, device: str) -> dict:
    """The content of config.json; `settings` is all that a reward or the order of sampling depends on."""
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    free = ("mode", "data_dir", "run_dir", "workers", "cluster", "gpus_per_child", "use_cuda", "num_children",
            "num_finalists", "architecture", "eval_epochs", "num_seeds")  # fmt: skip
    settings = {name: value for name, value in flags.items() if name not in free}
    settings |= {"recipe": asdict(recipe), "device": device}
    return {"num_children": args.num_children, "settings": settings, "flags": flags} | utils.environment()


def save_search(args: argparse.Namespace, controller: Controller, rows: dict, ranking: list, shares: list) -> None:
    """Write controller.pt, best.json and search.png."""
    import plots  # here, because worker processes import this file and none needs matplotlib

    rebuild = {"num_choices": controller.num_choices, "names": controller.names}
    rebuild |= {"hidden_size": args.hidden_size, "num_layers": args.controller_layers}
    rebuild["state_dict"] = controller.state_dict()
    utils.write_atomically(args.run_dir / "controller.pt", as_bytes(rebuild))
    best = {key: ranking[0][key] for key in ("architecture", "val_accuracy", "child", "parameters")}
    best |= {"dataset": args.dataset, "seed": args.seed, "strategy": args.strategy, "children": len(rows)}
    best["chosen_by"] = f"highest validation accuracy of {len(rows)} children, of equal ones the earliest"
    if count_finalists(args):
        best["chosen_by"] = f"highest mean validation accuracy of two trainings, among the {len(ranking)} best children"
        best["finalists"] = [{key: row[key] for key in ("architecture", "child", "val_accuracies")} for row in ranking]
    utils.write_json(args.run_dir / "best.json", best)
    ordered = [rows[child] for child in sorted(rows)]
    title = f"{args.strategy} search on {args.dataset}: {len(rows)} children, seed {args.seed}"
    plots.plot_search(args.run_dir / "search.png", ordered, make_space(args).tokens, shares, title)
    best = parse_architecture(best["architecture"])
    plots.plot_architecture(args.run_dir / "best.png", best, f"best of {len(rows)} children on {args.dataset}")


def report(args: argparse.Namespace, rows: dict, ranking: list, search: PolicyGradient, clock: utils.Clock) -> None:
    """Print what a search found, what it cost, and how to go on."""
    failed, samples = sum("error" in row for row in rows.values()), len(search.rewards)
    wall, slots, main_cpu = (clock.total[key] for key in ("wall", "workers", "main_cpu"))
    trainings = rows | {row["child"]: row for row in ranking}  # a finalist's seconds are those of both its trainings
    busy, overhead = sum(row["seconds"] for row in trainings.values()) / (slots or 1), main_cpu / (wall or 1)
    if search.stopped_early and len(rows) < args.num_children:
        print(f"ended after {len(rows)} of {args.num_children} children: {search.stopped_early}")
    print(f"best architecture   {ranking[0]['architecture']}   validation accuracy {ranking[0]['val_accuracy']:.2%}")
    for place, row in enumerate(ranking[:5], start=1):
        line = "  {}. {architecture}   {val_accuracy:.2%}{both}   {parameters:,} parameters   child {child}"
        both = " = mean of " + ", ".join(f"{a:.2%}" for a in row["val_accuracies"]) if count_finalists(args) else ""
        print(line.format(place, both=both, **row))
    twice = f", the best {len(ranking)} twice" if count_finalists(args) else ""
    print(f"children            {len(rows)} trained{twice} ({failed} failed)")
    print(f"samples             {samples}, {samples - len(rows)} of them remembered")
    print(f"time                {duration(wall)}; workers training {busy:.1%} of it, search overhead {overhead:.1%}")
    print(f"files               {args.run_dir}/ (search.png; tensorboard --logdir {args.run_dir})")
    dataset = f" --dataset {args.dataset}" if args.dataset != "MNIST" else ""
    dataset += " --child_recipe paper" if args.child_recipe == "paper" else ""
    run_dir = f" --run_dir {args.run_dir}" if args.run_dir != default_run_dir(args.dataset, "reinforce") else ""
    print(f"evaluate it with    python train.py --mode evaluate{dataset}{run_dir}")


# --- evaluation ---------------------------------------------------------------------------------------------------


def evaluate(args: argparse.Namespace) -> None:
    """Retrain an architecture on all training images with several seeds, and measure it on the test set."""
    started = time.perf_counter()
    device = utils.choose_device(args.use_cuda)
    architecture, suffix = choose_architecture(args)
    train, num_classes = utils.load_images(args.dataset, args.data_dir, train=True)
    test, _ = utils.load_images(args.dataset, args.data_dir, train=False)
    train = Images(*(tensor[: args.train_images] for tensor in train))
    recipe = replace(make_recipe(args, EVALUATION, args.eval_epochs), best_of=1)  # the test set chooses nothing
    size = print_network(architecture, tuple(train.pixels.shape[1:]), num_classes)
    print(f"training it on {len(train.labels):,} images: {args.num_seeds} seeds, {recipe.epochs:g} epochs each")

    seeds = [utils.child_seed(args.seed + i, str(architecture)) for i in range(args.num_seeds)]
    finals = train_finals(architecture, (train, test, num_classes), recipe, seeds, device, args.workers)

    result = {"architecture": str(architecture), "dataset": args.dataset}
    for name in ("top1", "top5"):
        values = [final[name] for final in finals]
        mean, std = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
        result |= {name: values, f"{name}_mean": mean, f"{name}_std": std}
        listed = ", ".join(f"{value:.2%}" for value in values)
        print(f"{name} test accuracy  {mean:.2%} ± {100 * std:.2f}  (mean ± std, n = {len(values)}: {listed})")
    result |= {"seeds": seeds, "train_images": len(train.labels), "seconds": time.perf_counter() - started} | size
    result |= {"recipe": asdict(recipe), "device": device} | utils.environment()
    args.run_dir.mkdir(parents=True, exist_ok=True)
    utils.write_json(args.run_dir / f"evaluation{suffix}.json", result)
    utils.write_atomically(args.run_dir / f"best_child{suffix}.pt", finals[0]["saved"])
    print(f"time                {duration(result['seconds'])}")
    files = f"evaluation{suffix}.json, best_child{suffix}.pt (the first seed's weights)"
    print(f"files               {args.run_dir}/{files}")


def print_network(architecture: Architecture, image_shape: tuple[int, int, int], num_classes: int) -> dict:
    """Print a network's layers with output shapes and parameters; returns its totals."""
    try:
        layers = summarize(Child(architecture, image_shape, num_classes), image_shape)
    except ValueError as error:
        raise InputError(str(error)) from None
    size = {name: sum(getattr(layer, name) for layer in layers) for name in ("parameters", "flops")}
    width = max(len(layer.name) for layer in layers)
    for name, shape, parameters, _ in layers:
        print(f"  {name:<{width}} {' x '.join(map(str, shape)):>14} {parameters:>9,} parameters")
    print(f"  {architecture}: {size['parameters']:,} parameters, {size['flops'] / 1e6:.1f} million FLOPs an image")
    return size


def train_finals(
    architecture: Architecture, data: tuple, recipe: Recipe, seeds: list[int], device: str, num_workers: int
) -> list[dict]:
    """Train an architecture once per seed, in parallel; top-1, top-5 and weights of each."""
    images_seen = torch.zeros(len(seeds), dtype=torch.int64).share_memory_()
    with Workers(min(num_workers, len(seeds)), shared=(*in_shared_memory(data), images_seen)) as workers:
        task = (workers.run, final_child, architecture, recipe)
        jobs = [workers.submit(*task, index, seed, device) for index, seed in enumerate(seeds)]
        total = round(recipe.epochs * len(data[0].labels)) * len(seeds)
        with tqdm(total=total, unit=" images", unit_scale=True, dynamic_ncols=True) as bar:
            while wait(jobs, timeout=0.5, return_when=FIRST_EXCEPTION).not_done:
                bar.update(images_seen.sum().item() - bar.n)
            bar.update(total - bar.n)
        return [job.result() for job in jobs]


def final_child(data: tuple, architecture: Architecture, recipe: Recipe, index: int, seed: int, device: str) -> dict:
    """Runs in a worker process: train a child on all training images and measure it on the test images."""
    train, test, num_classes, images_seen = data
    trained = train_child(architecture, train, test, num_classes, recipe, seed, device, images_seen[index])
    saved = {"architecture": str(architecture), "state_dict": trained.child.cpu().state_dict()}
    saved |= {"image_shape": tuple(train.pixels.shape[1:]), "num_classes": num_classes}
    return {"top1": trained.accuracy, "top5": trained.top5_accuracy, "saved": as_bytes(saved)}


def choose_architecture(args: argparse.Namespace) -> tuple[Architecture, str]:
    """--architecture, the run folder's best, or the committed one; and the suffix of the files to write."""
    if args.architecture is not None:
        text = str(args.architecture)
        return args.architecture, f"-{text if len(text) <= 200 else f'{text[:180]}-{utils.child_seed(0, text)}'}"
    rows, _ = utils.read_ledger(args.run_dir / "children.jsonl")
    committed = utils.ROOT / "results" / args.dataset.lower() / "best.json"
    if rows:
        settings = utils.read_json(args.run_dir / "config.json").get("settings")
        if not isinstance(settings, dict) or settings.get("dataset") not in utils.DATASETS:
            raise InputError(f"{args.run_dir}/config.json was not written by a search: choose another --run_dir")
        if settings["dataset"] != args.dataset:
            raise InputError(f"{args.run_dir} holds a search on {settings['dataset']}: add --dataset to name it")
        best_file = args.run_dir / "best.json"
        best = utils.read_json(best_file) if best_file.exists() else {}
        if best.get("children") == len(rows):
            print(f"best architecture of the search in {args.run_dir}: {best.get('architecture')}")
        else:
            best = utils.ranked(rows)[0]
            print(f"the search in {args.run_dir} is not finished: best of {len(rows)} children: {best['architecture']}")
    elif args.run_dir != default_run_dir(args.dataset, args.strategy):
        raise InputError(f"no search in {args.run_dir}: run --mode generate there first, or name an --architecture")
    elif committed.exists():
        best = utils.read_json(committed)
        print(f"no search in {args.run_dir}: taking {best['architecture']} from {committed.relative_to(utils.ROOT)}")
    else:
        raise InputError(f"no search in {args.run_dir}: run --mode generate first, or name an --architecture")
    try:
        return parse_architecture(str(best["architecture"])), ""
    except (KeyError, ValueError) as error:
        raise InputError(f"no architecture to read in {args.run_dir}: {error}") from None


# --- small things -------------------------------------------------------------------------------------------------


def event_writer(folder: Path):
    """A TensorBoard writer in the run folder; the events of an earlier run are written anew."""
    from torch.utils.tensorboard import SummaryWriter  # here, because worker processes import this file

    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    return SummaryWriter(folder)


def in_shared_memory(data: tuple) -> tuple:
    """Move the tensors of (train, held-out, classes) to memory that worker processes share."""
    try:
        for tensor in (*data[0], *data[1]):
            tensor.share_memory_()
    except RuntimeError as error:
        raise InputError(f"not enough shared memory for the images ({error})") from None
    return data


def as_bytes(value: dict) -> bytes:
    """What `torch.save` would write."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def default_run_dir(dataset: str, strategy: str) -> Path:
    return Path("runs", dataset.lower() + ("-random" if strategy == "random" else ""))


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

    def convert(text: str) -> float:
        try:
            value = kind(text)
            if not (low < value <= high if above else low <= value <= high):
                raise ValueError
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            limits = f"{'above' if above else 'from'} {low:g} to {high:g}"
            raise argparse.ArgumentTypeError(f"must be {what} {limits}, not {text!r}") from None
        return value

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


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Every setting of the program, in one place."""
    parser = Parser("train.py", description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    # fmt: off
    add = parser.add_argument_group("what to do").add_argument
    add("--mode", choices=("generate", "evaluate"), default="generate", help="search, or retrain and test the best")
    add("--dataset", choices=utils.DATASETS, default="MNIST", help="MNIST is included, others are downloaded once")
    add("--data_dir", type=Path, default="data", help="the data sets, in torchvision's layout")
    add("--run_dir", type=Path, help="a search's files (default: runs/<dataset>, or runs/<dataset>-random)")
    add("--use_cuda", type=boolean, nargs="?", const=True, default=False, help="train on the GPU: True or False")
    add("--workers", type=size, default=utils.usable_cores(), help="children trained at once; changes no result")
    add("--cluster", metavar="ADDRESS", help="search on a Ray cluster: auto, its host:port, or local (--workers CPUs)")
    add("--gpus_per_child", type=number(float, 0, 1), default=0.0, help="with --cluster: share of a GPU, such as 0.25")
    add("--seed", type=number(int, 0), default=0, help="of the controller, the sampling and all children")

    add = parser.add_argument_group("search").add_argument
    add("--strategy", choices=("reinforce", "random"), default="reinforce", help="random learns nothing: a control")
    add("--space", choices=("original", "paper"), default="original", help="paper: rectangles, batch norm, skips")
    add("--strides", type=boolean, nargs="?", const=True, default=False, help="predict strides too (space: paper)")
    add("--num_layers", type=number(int, 1, MAX_LAYERS), default=2, help="convolutions in a child (paper: 6, growing)")
    add("--layers_step", type=number(int, 0, 100), default=0, help="layers added every --layers_every (paper: 2)")
    add("--layers_every", type=count, default=1600, help="children between two growths of the depth")
    add("--num_children", type=count, default=120, help="budget: distinct children to train")
    add("--num_finalists", type=number(int, 0), default=20, help="best children, trained once more; a tenth at most")
    add("--children_per_update", type=count, default=5, help="samples, duplicates included (paper: 8)")
    add("--update_lag", type=number(int, 0), default=1, help="updates a sample may be behind: no waiting workers")

    add = parser.add_argument_group("controller and policy gradient").add_argument
    add("--hidden_size", type=size, default=64, help="units of each LSTM layer (paper: 35)")
    add("--controller_layers", type=size, default=1, help="LSTM layers (paper: 2)")
    add("--controller_lr", type=number(float, 0), default=0.02, help="learning rate of Adam (paper: 0.0006)")
    add("--entropy_weight", type=number(float, 0), default=0.3, help="per nat, times the share of repeats (paper: 0)")
    add("--baseline_decay", type=number(float, 0, 1), default=0.5, help="of the moving average of rewards, per update")
    add("--reward_exponent", type=positive, default=1.0, help="reward = accuracy to this power (paper: 3)")
    add("--importance_weights", type=boolean, nargs="?", const=True, default=False, help="for large lags, such as 19")
    add("--reward_scale", choices=("rank", "none"), default="rank", help="rank among the rewards so far (paper: none)")

    add = parser.add_argument_group("children").add_argument
    add("--child_recipe", choices=("fast", "paper"), default="fast", help="paper: SGD, crops, flips; for evaluate too")
    add("--child_epochs", type=positive, help=f"passes over the training images (default: {Recipe.epochs}, paper: 50)")
    add("--child_timeout", type=positive, help="seconds; a child that takes longer gets reward 0 (default: no limit)")
    add("--train_images", type=count, help="train on so many images only, for quick trials (default: all)")

    add = parser.add_argument_group("evaluate").add_argument
    add("--architecture", type=architecture, help="such as k5f16p0-k5f32p1 (default: the best of the search)")
    add("--eval_epochs", type=positive, help=f"passes over the images (default: {EVALUATION.epochs:g}, paper: 50)")
    add("--num_seeds", type=count, default=4, help="trainings to average over")
    # fmt: on
    args = parser.parse_args(arguments)
    args.child_epochs = args.child_epochs or (PAPER_RECIPE if args.child_recipe == "paper" else Recipe).epochs
    if args.strides and args.space != "paper":
        parser.error("argument --strides: only --space paper has them")
    if depth(args, args.num_children - 1) > MAX_LAYERS:
        parser.error(f"argument --layers_step: networks would grow beyond {MAX_LAYERS} layers")
    first = SearchSpace(args.num_layers, args.space == "paper", args.strides)
    if args.layers_step and math.prod(len(choices) for *_, choices in first.tokens) < args.layers_every:
        parser.error(f"argument --layers_every: there are fewer networks of {args.num_layers} layers than that")
    if args.cluster and args.mode == "evaluate":
        parser.error("argument --cluster: --mode evaluate trains on this machine")
    if args.gpus_per_child and not args.cluster:
        parser.error("argument --gpus_per_child: only --cluster shares GPUs")
    if args.cluster and args.use_cuda and not args.gpus_per_child:
        parser.error("argument --use_cuda: with --cluster say how much of a GPU a child gets, as --gpus_per_child 0.25")
    args.run_dir = args.run_dir or default_run_dir(args.dataset, args.strategy)
    return args


def main(arguments: list[str] | None = None) -> None:
    """Run the program; what the user can put right is one line and exit code 2."""
    args = parse_arguments(arguments)
    torch.set_num_threads(1)  # the search's arithmetic must not depend on the machine's load
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        generate(args) if args.mode == "generate" else evaluate(args)
    except (InputError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        again = "the same command goes on from here" if args.mode == "generate" else "nothing was written"
        print(f"train.py: stopped; {again}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
