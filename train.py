"""Neural architecture search with reinforcement learning (Zoph & Le, 2016, arXiv 1611.01578).

python train.py --mode generate                      search: two minutes on two cores
python train.py --mode evaluate --use_cuda True      retrain the best network and test it: about 6 minutes
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
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from functools import partial

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # until main(), as imports take seconds

import torch
from tqdm import tqdm

import datasets
import pictures
import policy_gradient
import report
import settings
import utils
from evaluation import EVALUATION_RECIPE, evaluate
from model import MIN_STEPS, PAPER_RECIPE, ImpossibleNetwork, Recipe, on_device, size_or_none, train_child
from policy_gradient import PolicyGradient
from search_space import Architecture, parse_architecture
from settings import Parser, Run, architecture_from_text, boolean, dataset_name, expanded_path, number
from workers import Cluster, TaskFailed, Workers

MAX_LAYERS = 100
PAPER_FLAGS = policy_gradient.PAPER_SETTINGS | {  # what --paper sets (§3.2, §4.1)
    "controller_layers": 2,
    "hidden_size": 35,
    "reward_exponent": 3.0,
    "num_finalists": 0,
}
PAPER_FLAGS["controller_lr"] = PAPER_FLAGS.pop("lr")  # the flag has another name
PICTURES = ("search.png", "front.png", "best.png")
FILES = ("children.jsonl", "finalists.jsonl", "best.json", "controller.pt", "time.json", ".lock", *PICTURES)

# --- search -------------------------------------------------------------------------------------------------------


def generate(args: argparse.Namespace) -> None:
    """Search for an architecture (§3), going on where an earlier run in the same folder stopped.

    To go on it samples and learns again from the seed, but finds the rewards in the ledger. It does not read
    controller.pt.

    What happens to one network:

        generate            samples it from the controller
        train_and_record    in a thread: takes its row from the ledger, or has it trained and writes the row
        attempt             gives it the accuracy 0 if its training fails
        workers.run         sends it to a worker process
        search_child        in that process: gets the images, and returns the validation accuracy
        model.train_child   makes the network and trains it
        search.tell         learns from the rewards, those of the oldest batch first
    """
    clock = utils.Clock(args.run_dir / "time.json")
    run = settings.make_run(args)
    search = settings.make_search(run)
    with (
        utils.open_run(args.run_dir, settings.config(run)) as ledger,
        settings.make_workers(run) as workers,
        report.Progress(args.run_dir, args.num_children, len(ledger.rows)) as progress,
    ):
        submit = partial(workers.submit, train_and_record, run, workers)
        num_before = len(ledger.rows)
        if not num_before:
            clock.save()  # the file is there before any row is
        pending = deque()  # batches that are being trained
        while pending or not search.done(args.num_children):
            while len(pending) <= args.update_lag and not search.done(args.num_children):
                update = search.updates + len(pending)  # the one that will learn from this batch
                batch = search.ask(args.num_children)  # §3.1: the controller writes architectures
                new_rows = [new_row(run, search.asked[actions], update, actions) for actions in batch]
                pending.append((batch, [submit(row, ledger) for row in new_rows]))  # §3.2: the new ones are trained
            batch, trainings = pending.popleft()
            rows = wait_for(trainings, ledger, progress.bar)
            metrics = search.tell(batch, [row["reward"] for row in rows])  # §3.2: REINFORCE
            progress.show(search, metrics)
            if len(ledger.rows) > num_before:
                clock.count(workers.num_workers)
                clock.save()
        progress.bar.close()
        settings.check_children(run, search, ledger.rows)
        ranking, is_new = train_finalists(run, search, ledger.rows, submit)
        if is_new:
            clock.count(workers.num_workers)
        try:
            clock.save()
            report.save(run, search, ledger.rows, ranking)
        finally:  # the numbers are printed even if a file can't be written
            report.show(run, search, ledger.rows, ranking, clock)
    report.draw(run, ledger.rows, ranking, progress.shares)


def new_row(run: Run, child: int, update: int, actions: Sequence[int], *purpose: str) -> dict:
    """What is known of a child before it is trained: the first part of its ledger row."""
    architecture = str(run.space.decode(actions))
    row = {"child": child, "update": update, "actions": list(actions), "architecture": architecture}
    return row | {"seed": utils.child_seed(run.args.seed, architecture, *purpose)}


def train_and_record(run: Run, workers: Workers | Cluster, row: dict, ledger: utils.Ledger) -> dict:
    """The whole row of a child: from the ledger, or trained in a worker process; runs in a thread of its own."""
    if known := ledger.find(row):
        return known
    row = row | attempt(run, workers, row["architecture"], row["seed"])
    row["reward"] = reward(row, run.args.reward_exponent)
    ledger.append(row)
    return row


def wait_for(trainings: Sequence[Future], ledger: utils.Ledger, bar: tqdm) -> list[dict]:
    """The rows of these trainings, when all have ended; the bar counts the ledger's rows, those of other batches too.

    Only the main thread moves the bar, so that no other one can fail, or wait, because nobody reads it.
    """
    waiting = set(trainings)
    while waiting:
        ended, waiting = wait(waiting, timeout=0.5, return_when=FIRST_EXCEPTION)
        for training in ended:
            training.result()  # the first error ends the search
        if new := len(ledger.rows) - bar.n:
            bar.update(new)
    return [training.result() for training in trainings]


def reward(row: dict, exponent: float) -> float:
    """What the search maximises, and ranks children by: the accuracy to some power (the paper's cube is 3)."""
    return row["val_accuracy"] ** exponent


def attempt(run: Run, workers: Workers | Cluster, architecture: str, seed: int) -> dict:
    """A child's part of its ledger row; one that can't be trained gets accuracy 0 and an `error`."""
    started = time.perf_counter()
    try:
        return workers.run(search_child, parse_architecture(architecture), run.recipe, seed, run.device)
    except (TaskFailed, ImpossibleNetwork) as error:
        # 0, not -inf: it is recorded as an accuracy, and no reward is lower.
        failed = {"val_accuracy": 0.0, "parameters": 0, "flops": 0, "seconds": time.perf_counter() - started}
        return failed | {"error": str(error)}


def search_child(data: datasets.Data, architecture: Architecture, recipe: Recipe, seed: int, device: str) -> dict:
    """Runs in a worker process: train a child and measure it on the validation images."""
    trained = train_child(architecture, on_device(data, device), recipe, seed)
    return {"val_accuracy": trained.accuracy, **size_or_none(architecture, data), "seconds": trained.seconds}


def count_finalists(num_children: int, limit: int) -> int:
    """At most a tenth of the children; none if that is one, as there is nothing to choose from."""
    finalists = min(limit, num_children // 10)
    return finalists if finalists > 1 else 0


def train_finalists(run: Run, search: PolicyGradient, rows: dict, submit: Callable) -> tuple[list[dict], bool]:
    """Train the first few of the ranking once more with another seed: one noisy accuracy can't tell them apart.

    Returns their rows, the network to return first, with the `val_accuracies` of the trainings that did not fail;
    all rows if there are no finalists. And whether any training is new.
    """
    ranking = ranked(search, rows.values())
    finalists = [row | {"val_accuracies": [row["val_accuracy"]]} for row in ranking if "error" not in row]
    finalists = finalists[: count_finalists(run.args.num_children, run.args.num_finalists)]
    if not finalists:
        return ranking, False
    ledger = utils.Ledger(run.args.run_dir / "finalists.jsonl")
    todo = [new_row(run, row["child"], row["update"], row["actions"], "finalist") for row in finalists]
    known, new = len(ledger.rows), sum(ledger.find(row) is None for row in todo)
    shown = {} if new else {"disable": True}  # disable=False would override TQDM_DISABLE
    with ledger.file, tqdm(total=known + new, initial=known, unit="finalist", dynamic_ncols=True, **shown) as bar:
        trained_again = wait_for([submit(row, ledger) for row in todo], ledger, bar)
    for finalist, again in zip(finalists, trained_again, strict=True):
        finalist["seconds"] += again["seconds"]
        if "error" not in again:
            finalist["val_accuracies"].append(again["val_accuracy"])
            for key in ("val_accuracy", "reward"):
                finalist[key] = (finalist[key] + again[key]) / 2
    return ranked(search, finalists), bool(new)


def ranked(search: PolicyGradient, rows: Collection[dict]) -> list[dict]:
    """Rows in the order in which the search would return their networks."""
    row_of = {tuple(row["actions"]): row for row in sorted(rows, key=lambda row: row["child"])}
    return [row_of[actions] for actions in search.ranking({a: [row["reward"]] for a, row in row_of.items()})]


# --- command line -------------------------------------------------------------------------------------------------


def make_parser() -> Parser:
    """Every setting of the program, in one place."""
    keep_lines = argparse.RawDescriptionHelpFormatter
    parser = Parser("train.py", description=__doc__, formatter_class=keep_lines, allow_abbrev=False)
    count, size, positive = (number(int, 1), number(int, 1, 1000), number(float, 0, above=True))
    switch = {"type": boolean, "nargs": "?", "const": True, "default": False}
    # fmt: off
    add = parser.add_argument_group("what to do").add_argument
    add("--mode", choices=("generate", "evaluate"), default="generate",
        help="generate: search; evaluate: train the best network on all images, and test it")
    add("--dataset", type=dataset_name, default="MNIST",
        help=f"{', '.join(datasets.BUILT_IN)}, or your own: a folder with a subfolder per class, a .csv or .npz")
    add("--image_size", type=size, metavar="PIXELS",
        help=f"size of your own images (default: {pictures.IMAGE_SIZE}, if they differ or exceed {pictures.LARGE})")
    add("--data_dir", type=expanded_path, default=utils.relative_to_cwd("data"),
        help="folder of the built-in data sets")
    add("--strategy", choices=("reinforce", "random"), default="reinforce", help="random: uniform, for comparison")
    add("--run_dir", type=expanded_path,
        help="folder of the search's files (default: runs/<dataset>, or runs/<dataset>-random)")
    add("--use_cuda", **switch, help="train on the GPU: True or False")
    add("--workers", type=size, help="processes that train; changes no result (default: one a core, 4 with CUDA)")
    add("--cluster", metavar="ADDRESS", help="search on a Ray cluster: auto, its host:port, or local: this machine")
    add("--gpus_per_child", type=number(float, 0, 1), default=0.0, help="with --cluster: share of a GPU, such as 0.25")
    add("--seed", type=number(int, 0), default=0, help="random seed of the whole run; to compare settings use several")

    add = parser.add_argument_group("search", "only --mode generate has it").add_argument
    add("--space", choices=("small", "paper"), default="small",
        help="small: square filters, 729 networks of 2 layers; paper: rectangular ones, skip connections (§3.3, §4.1)")
    add("--strides", **switch, help="--space paper: also choose the strides of each layer, from 1 to 3")
    add("--pooling", type=number(int, 0, MAX_LAYERS), default=0, metavar="N",
        help="--space paper: max-poolings of 2 at evenly spaced places (paper: 2 among 39 layers)")
    add("--num_layers", type=number(int, 1, MAX_LAYERS), default=2, help="convolutions in a child (paper: 6, growing)")
    add("--layers_step", type=number(int, 0, 100), default=0, help="layers added at each growth (paper: 2)")
    add("--layers_every", type=count, default=1600, help="children between two growths of the depth")
    add("--num_children", type=count, default=80, help="budget: distinct networks to train")
    add("--max_parameters", type=count, help="skip larger networks without using budget (default: no limit)")
    add("--max_flops", type=count, help="the same for floating-point operations of one image (default: no limit)")
    add("--num_finalists", type=number(int, 0), default=20,
        help="best networks trained once more before the pick: one accuracy is noisy (at most a tenth of the children)")
    add("--children_per_update", type=count, default=2, help="networks sampled for each update (paper: 8)")
    add("--update_lag", type=number(int, 0), default=4,
        help="batches pending, less one: a larger lag keeps more workers busy, but samples come from an older policy")

    add = parser.add_argument_group("controller and policy gradient", "only --mode generate has it").add_argument
    add("--paper", **switch, help="the paper's controller and update, no finalists: for thousands of children")
    add("--hidden_size", type=size, default=64, help="units of each LSTM layer of the controller (paper: 35)")
    add("--controller_layers", type=size, default=1, help="LSTM layers of the controller (paper: 2)")
    add("--controller_lr", type=number(float, 0), default=0.02, help="Adam's learning rate at first (paper: 0.0006)")
    add("--entropy_weight", type=number(float, 0), default=0.7,
        help="exploration: what a uniform policy's entropy is worth, in standard deviations of the reward (paper: 0)")
    add("--baseline_decay", type=number(float, 0, 1), default=0.5,
        help="decay of the moving average of rewards; 0: only the last batch")
    add("--reward_exponent", type=positive, default=1.0,
        help="reward = accuracy to this power; ranks stay the same, see --reward_scale (paper: 3)")
    add("--replay", type=number(int, 0), default=1000,
        help="number of most recent children used in each update; 0: only the batch, with repeats (paper: 0)")
    add("--reward_scale", choices=("rank", "none"), default="rank",
        help="learn from the rank among the rewards so far, or from the reward itself (paper: none)")

    add = parser.add_argument_group("children").add_argument
    add("--child_recipe", choices=("fast", "paper"), default="fast",
        help="how networks are trained, in evaluate too; paper: SGD for 50 epochs with crops and flips")
    add("--child_epochs", type=positive,
        help=f"passes over the images (default: {Recipe.epochs}, of your own at least {MIN_STEPS} steps; paper: 50)")
    add("--child_timeout", type=positive, help="seconds after which a training ends with reward 0 (default: no limit)")
    add("--train_images", type=number(int, 2), metavar="N",
        help="use only N training images, for quick trials (default: all)")
    add("--mirror", type=boolean, nargs="?", const=True,
        help="images may be mirrored: photographs yes, letters no (default: True for FashionMNIST and CIFAR10)")
    add("--precision", choices=("float32", "bfloat16"), default="float32",
        help="number format; bfloat16 is faster on many GPUs, and where lscpu lists avx512_bf16 or amx_bf16")

    add = parser.add_argument_group("evaluate", "only --mode evaluate has it").add_argument
    add("--architecture", type=architecture_from_text,
        help="a network, as k5f16p0-k5f32p1 (default: the best of the search)")
    add("--eval_epochs", type=positive,
        help="epochs of evaluate's trainings "
             f"(default: {EVALUATION_RECIPE.epochs:g}, or the search's if more; paper: 50)")
    add("--num_seeds", type=count, default=4, help="trainings with different seeds, to average over")
    add("--extra_filters", type=number(int, 0, 1000), default=0,
        metavar="N", help="N more filters in each layer of the network (paper: 40, for its best result)")
    add("--references", **switch,
        help="also train LeNet-5's layers, the largest network, ten random ones, ResNet-18 and MobileNetV3-small")
    # fmt: on
    for action in parser._actions:
        if action.default not in (None, argparse.SUPPRESS):
            action.help += " (default: %(default)s)"
    return parser


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The settings of this run; what contradicts itself ends the program with one line."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    if args.paper:  # flags that are given win
        parser.set_defaults(**PAPER_FLAGS)
        args = parser.parse_args(arguments)
    given = {argument.split("=")[0] for argument in (sys.argv[1:] if arguments is None else arguments)}
    for action in parser._actions:
        flag, only = action.option_strings[0], action.container.description
        if only and args.mode not in only and flag in given:
            parser.error(f"argument {flag}: {only}")
    args.workers = args.workers or (4 if args.use_cuda and torch.cuda.is_available() else utils.usable_cores())
    if args.dataset in datasets.BUILT_IN:
        args.child_epochs = args.child_epochs or (PAPER_RECIPE if args.child_recipe == "paper" else Recipe).epochs
    shallow = settings.make_space(argparse.Namespace(**vars(args) | {"layers_step": 0}))
    deepest = settings.depth(args, args.num_children - 1)
    few = math.prod(len(token.choices) for token in shallow.tokens) < args.layers_every
    contradictions = {
        "image_size: only your own images are resized": args.image_size and args.dataset in datasets.BUILT_IN,
        "strides: only --space paper has them": args.strides and args.space != "paper",
        "pooling: only --space paper has it": args.pooling and args.space != "paper",
        f"pooling: networks of {args.num_layers} layers have room for {args.num_layers - 1}":
            args.pooling >= args.num_layers and args.space == "paper",
        f"layers_step: networks would grow beyond {MAX_LAYERS} layers": deepest > MAX_LAYERS,
        f"layers_every: there are fewer networks of {args.num_layers} layers than that": args.layers_step and few,
        "cluster: --mode evaluate trains on this machine": args.cluster and args.mode == "evaluate",
        "gpus_per_child: only --cluster shares GPUs": args.gpus_per_child and not args.cluster,
        "use_cuda: with --cluster say how much of a GPU a child gets, as --gpus_per_child 0.25":
            args.cluster and args.use_cuda and not args.gpus_per_child,
    }  # fmt: skip
    found = [message for message, wrong in contradictions.items() if wrong]
    if found:
        parser.error(f"argument --{found[0]}")
    args.run_dir = args.run_dir or utils.default_run_dir(datasets.short_name(args.dataset), args.strategy)
    return args


def main(arguments: list[str] | None = None) -> None:
    """Run the program: exit code 2 and one line for what the user can put right, 1 for a picture that is missing."""
    utils.outlive_readers()
    tqdm.monitor_interval = 0  # no thread of tqdm's moves a bar, the main thread alone does
    os.environ.pop("MPLBACKEND", None)  # a notebook's, which may not be installed here; pictures need none
    with contextlib.suppress(AttributeError):  # a notebook's stream can't be reconfigured
        sys.stdout.reconfigure(errors="backslashreplace")  # what can't be printed in ASCII stops nothing
    args = parse_arguments(arguments)
    torch.set_num_threads(1)  # the search's arithmetic must not depend on the machine's load
    if args.reward_exponent != 1 and args.reward_scale == "rank":
        print("note: --reward_exponent changes no rank, and the policy learns from ranks (see --reward_scale)")
    with utils.ended_by_signals():
        try:
            utils.check_writable(args.run_dir)
            if args.mode == "generate":
                utils.check_foreign(args.run_dir, "config.json", FILES, settings=dict, num_children=int, runs=list)
            for module in ("plots", "torch.utils.tensorboard"):  # a missing package is missed now, not after the search
                importlib.import_module(module)  # here, because worker processes import this file
            generate(args) if args.mode == "generate" else evaluate(args)
            sys.stdout.flush()  # here, where an error is one line
        except utils.PictureMissing as error:
            print(f"train.py: {error}", file=sys.stderr)
            sys.exit(1)
        except (utils.InputError, ImpossibleNetwork, ImportError, OSError, MemoryError, RuntimeError) as error:
            print(f"train.py: {utils.explain_or_raise(error, args.run_dir)}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("train.py: stopped; the same command goes on from here", file=sys.stderr)
            sys.exit(130)


if __name__ == "__main__":
    main()
