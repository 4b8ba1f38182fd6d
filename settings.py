"""From flags to what they describe: their types, and all that a search is made of."""

import argparse
import contextlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch

import datasets
import utils
from controller import Controller
from model import MIN_POOLED, PAPER_RECIPE, Recipe, size_or_none, with_min_steps
from policy_gradient import PolicyGradient
from search_space import Architecture, PaperSpace, SearchSpace, SmallSpace, parse_architecture
from utils import InputError
from workers import Cluster, Workers

# --- types of flags -----------------------------------------------------------------------------------------------


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


def boolean(text: str) -> bool:
    """A flag's type: true or false, as people write them."""
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise argparse.ArgumentTypeError(f"must be True or False, not {text!r}")
    return text.lower() in ("true", "1", "yes")


def architecture_from_text(text: str) -> Architecture:
    """A flag's type: an architecture's text form."""
    try:
        return parse_architecture(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def expanded_path(text: str) -> Path:
    """A flag's type: a path, which may begin with ~."""
    return Path(os.path.expanduser(text))


def dataset_name(text: str) -> str:
    """A flag's type: a built-in data set, or where the reader's own images are."""
    text = os.path.expanduser(text)
    there = Path(text)
    if text in datasets.BUILT_IN or there.is_dir() or (there.is_file() and there.suffix.lower() in datasets.OWN_FILES):
        return text
    what = "is no folder, and neither a .csv nor an .npz file" if there.exists() else "does not exist"
    own = "your own images: a folder with a folder of pictures for each class, a .csv file of labels, or an .npz file"
    raise argparse.ArgumentTypeError(f"{text!r} {what}; give one of {', '.join(datasets.BUILT_IN)}, or {own}")


# --- a search -----------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """What the flags of a search describe, read once."""

    args: argparse.Namespace
    space: SearchSpace  # the space of the deepest networks
    data: datasets.Data
    recipe: Recipe  # how children are trained
    device: str
    allowed: Callable[[Sequence[int]], bool] | None  # what may be trained; None: everything


def make_run(args: argparse.Namespace) -> Run:
    """All that the flags of a search describe."""
    device = "cuda" if args.gpus_per_child else utils.choose_device(args.use_cuda)
    data = datasets.search_data(args.dataset, args.data_dir, args.train_images, args.image_size)
    check_pooling(args.pooling, data)
    space = make_space(args)

    def within_flags(actions: Sequence[int]) -> bool:
        return within_limits(space.decode(actions), data, vars(args))

    allowed = within_flags if args.max_parameters or args.max_flops else None
    return Run(args, space, data, child_recipe(args, data), device, allowed)


def make_search(run: Run) -> PolicyGradient:
    """The controller of a search and what teaches it."""
    controller = make_controller(run.args, run.space)
    return PolicyGradient(controller, **update_settings(run.args), allowed=run.allowed)


def check_pooling(pooling: int, data: datasets.Data) -> None:
    """InputError if images are too small to be halved so often."""
    height, width = data.train.pixels.shape[2:]
    possible, side = 0, min(height, width)
    while side >= MIN_POOLED:
        possible, side = possible + 1, side // 2
    if pooling > possible:
        too_small = f"maps below {MIN_POOLED} x {MIN_POOLED} are not pooled"
        raise InputError(f"--pooling {pooling}: images of {width} x {height} allow {possible} at most, as {too_small}")


def depth(args: argparse.Namespace, children: int) -> int:
    """Layers of the networks that are sampled after so many children (§4.1: 6, and 2 more every 1,600)."""
    return args.num_layers + args.layers_step * (children // args.layers_every)


def make_space(args: argparse.Namespace) -> SearchSpace:
    """The space of the deepest networks of a search."""
    return space_of(vars(args), depth(args, args.num_children - 1))


def space_of(flags: dict, num_layers: int) -> SearchSpace:
    """The space that these flags describe, with so many layers."""
    if flags["space"] == "small":
        return SmallSpace(num_layers)
    return PaperSpace(num_layers, flags["strides"], flags.get("pooling", 0))


def space_around(network: Architecture, searched: dict) -> SearchSpace:
    """The space of a network, as deep as it is; `searched` are the settings of its search, empty if there was none."""
    pooling = sum(layer.pool for layer in network.layers)
    strides = any(layer.conv.get("stride", (1, 1)) != (1, 1) for layer in network.layers)
    flags = {"space": "small" if network.hidden else "paper", "strides": strides}
    flags = searched if searched.get("space") == flags["space"] else flags
    return space_of({**flags, "pooling": pooling}, len(network.layers))


def make_controller(args: argparse.Namespace, space: SearchSpace) -> Controller:
    """The controller of a search; for random search one whose policy is exactly uniform."""
    torch.manual_seed(args.seed)
    controller = Controller(space.num_choices, space.names, args.hidden_size, args.controller_layers)
    for parameter in controller.parameters() if args.strategy == "random" else ():
        torch.nn.init.zeros_(parameter)
    return controller


def update_settings(args: argparse.Namespace) -> dict:
    """The settings of `PolicyGradient`; for random search it learns nothing."""
    settings = {field.name: getattr(args, field.name) for field in fields(PolicyGradient) if field.name in args}
    settings["lr"] = args.controller_lr if args.strategy == "reinforce" else 0.0
    if args.layers_step:
        steps_per_layer = len(make_space(args).decisions)
        settings["num_steps"] = lambda children: steps_per_layer * depth(args, children)
    return settings


def child_recipe(args: argparse.Namespace, data: datasets.Data) -> Recipe:
    """How children are trained; on the reader's own images never too short to learn anything, if no length is given."""
    recipe = PAPER_RECIPE if args.child_recipe == "paper" else Recipe()
    recipe = replace(recipe, precision=args.precision, flip=recipe.flip and args.mirror is not False)
    if args.child_epochs is not None:
        return replace(recipe, epochs=args.child_epochs)
    return with_min_steps(recipe, len(data.train.labels))


def may_mirror(args: argparse.Namespace, default: bool | None = None) -> bool:
    """Whether final trainings mirror images: what --mirror says, or `default`, or what suits recipe and data set."""
    if args.mirror is not None:
        return args.mirror
    return mirrors_by_default(args) if default is None else default


def mirrors_by_default(args: argparse.Namespace) -> bool:
    """Whether images are mirrored if nothing is said: the paper's recipe does, and some built-in data sets allow it."""
    return args.child_recipe == "paper" or args.dataset in datasets.SAME_IN_A_MIRROR


def within_limits(architecture: Architecture, data: datasets.Data, limits: dict) -> bool:
    """Whether a network is within --max_parameters and --max_flops, or impossible: that fails like any other."""
    size = size_or_none(architecture, data)
    return size is None or all(size[name] <= (limits.get(f"max_{name}") or math.inf) for name in size)


def make_workers(run: Run) -> Workers | Cluster:
    """Processes on this machine, or with --cluster on many."""
    args = run.args
    if args.cluster is None:
        return Workers(args.workers, datasets.in_shared_memory(run.data), args.child_timeout, run.device)
    try:
        return Cluster(args.cluster, args.workers, run.data, args.child_timeout, args.gpus_per_child)
    except ImportError:
        raise InputError("--cluster needs Ray: pip install -r requirements-cluster.txt") from None


CHANGEABLE_FLAGS = {  # neither a reward nor the order of sampling depends on them: a search goes on with others
    "mode", "data_dir", "run_dir", "workers", "cluster", "gpus_per_child", "use_cuda", "num_children", "num_finalists",
    "architecture", "eval_epochs", "num_seeds", "extra_filters", "references", "paper",
}  # fmt: skip


def config(run: Run) -> dict:
    """The content of config.json; `settings` is all that a reward or the order of sampling depends on."""
    flags = {name: str(value) if isinstance(value, Path) else value for name, value in vars(run.args).items()}
    settings = {name: value for name, value in flags.items() if name not in CHANGEABLE_FLAGS}
    settings |= {"dataset": datasets.short_name(run.args.dataset), "recipe": asdict(run.recipe), "device": run.device}
    del settings["recipe"]["precision"]  # it is there as a flag
    settings["version"] = utils.COMPATIBLE_WITH
    settings["mirror"] = may_mirror(run.args)
    by_default = {"pooling": 0, "precision": "float32", "mirror": mirrors_by_default(run.args)}
    pictures = datasets.path_of_pictures(run.args.dataset, run.args.data_dir)
    settings["images"] = datasets.fingerprint(run.data) if pictures else None
    for name in [name for name, value in by_default.items() if settings[name] == value]:
        del settings[name]  # version 1.1 had no such flag: its searches go on
    return {"num_children": run.args.num_children, "settings": settings, "flags": flags} | utils.environment(run.device)


def check_children(run: Run, search: PolicyGradient, rows: dict[int, dict]) -> None:
    """InputError if no child could be trained."""
    if not rows:
        sizes = [size_or_none(run.space.decode(actions), run.data) for actions in search.refused]
        least = " and ".join(f"{min(size[name] for size in sizes):,} {name}" for name in ("parameters", "flops"))
        what = f"none of {len(sizes)} networks is within the limits, the smallest have {least}"
        raise InputError(f"{what}: raise --max_parameters or --max_flops")
    if all("error" in row for row in rows.values()):
        remedy = "a larger --image_size, fewer --num_layers or --workers, or a longer --child_timeout"
        raise InputError(f"all {len(rows)} children failed, the first with: {rows[min(rows)]['error']}; try {remedy}")
