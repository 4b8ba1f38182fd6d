"""`--mode evaluate`: train an architecture on all training images, several times, and measure it on the test images."""

import argparse
import statistics
import time
from concurrent.futures import FIRST_EXCEPTION, wait
from dataclasses import asdict, replace

import torch
from tqdm import tqdm

import utils
from model import PAPER_RECIPE, Child, Recipe, summarize, train_child
from search_space import Architecture, parse_architecture
from utils import Data, InputError
from workers import TaskFailed, Workers

EVALUATION = Recipe(epochs=4, shift=1)


def evaluate(args: argparse.Namespace) -> None:
    """Retrain an architecture with several seeds, print its test accuracies and write them to the run folder."""
    started = time.perf_counter()
    device = utils.choose_device(args.use_cuda)
    architecture, suffix = choose_architecture(args)
    data = utils.evaluation_data(args.dataset, args.data_dir, args.train_images)
    recipe = PAPER_RECIPE if args.child_recipe == "paper" else EVALUATION
    recipe = replace(recipe, epochs=args.eval_epochs or recipe.epochs, best_of=1)  # the test set chooses nothing
    size = print_network(architecture, tuple(data.train.pixels.shape[1:]), data.num_classes)
    n = len(data.train.labels)
    print(f"training it on {n:,} images: {args.num_seeds} seeds, {recipe.epochs:g} epochs each")

    seeds = [utils.child_seed(args.seed, str(architecture), "final", i) for i in range(args.num_seeds)]
    finals = train_finals(architecture, data, recipe, seeds, device, args.workers)

    result = {"architecture": str(architecture), "dataset": args.dataset}
    for name in ("top1", "top5"):
        values = [final[name] for final in finals]
        mean, std = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
        result |= {name: values, f"{name}_mean": mean, f"{name}_std": std}
        listed = ", ".join(f"{value:.2%}" for value in values)
        print(f"{name} test accuracy  {mean:.2%} ± {100 * std:.2f}  (mean ± std, n = {len(values)}: {listed})")
    result |= {"seeds": seeds, "train_images": n, "seconds": time.perf_counter() - started} | size
    result |= {"recipe": asdict(recipe), "device": device} | utils.environment()
    args.run_dir.mkdir(parents=True, exist_ok=True)
    utils.write_json(args.run_dir / f"evaluation{suffix}.json", result)
    utils.write_atomically(args.run_dir / f"best_child{suffix}.pt", finals[0]["saved"])
    print(f"time                {utils.duration(result['seconds'])}")
    files = f"evaluation{suffix}.json, best_child{suffix}.pt (the first seed's weights)"
    print(f"files               {args.run_dir}/{files}")


def print_network(architecture: Architecture, image_shape: tuple[int, int, int], num_classes: int) -> dict:
    """Print a network's layers with output shapes and parameters; returns its totals."""
    layers = summarize(Child(architecture, image_shape, num_classes), image_shape)
    size = {name: sum(getattr(layer, name) for layer in layers) for name in ("parameters", "flops")}
    width = max(len(layer.name) for layer in layers)
    for name, shape, parameters, _ in layers:
        print(f"  {name:<{width}} {' x '.join(map(str, shape)):>14} {parameters:>9,} parameters")
    print(f"  {architecture}: {size['parameters']:,} parameters, {size['flops'] / 1e6:.1f} million FLOPs an image")
    return size


def train_finals(
    architecture: Architecture, data: Data, recipe: Recipe, seeds: list[int], device: str, num_workers: int
) -> list[dict]:
    """Train an architecture once per seed, in parallel; top-1, top-5 and weights of each."""
    images_seen = torch.zeros(len(seeds), dtype=torch.int64).share_memory_()
    total = round(recipe.epochs * len(data.train.labels)) * len(seeds)
    with (
        Workers(min(num_workers, len(seeds)), shared=(utils.in_shared_memory(data), images_seen)) as workers,
        tqdm(total=total, unit=" images", unit_scale=True, dynamic_ncols=True) as bar,
    ):
        task = (workers.run, final_child, architecture, recipe)
        jobs = [workers.submit(*task, index, seed, device) for index, seed in enumerate(seeds)]
        try:
            while (state := wait(jobs, timeout=0.5, return_when=FIRST_EXCEPTION)).not_done:
                bar.update(images_seen.sum().item() - bar.n)
                [job.result() for job in state.done]  # the first failure ends all
            finals = [job.result() for job in jobs]
        except TaskFailed as error:
            raise InputError(f"{architecture} can't be trained: {error}; try fewer --workers") from None
        bar.update(total - bar.n)
    return finals


def final_child(shared: tuple, architecture: Architecture, recipe: Recipe, index: int, seed: int, device: str) -> dict:
    """Runs in a worker process: train a child on all training images and measure it on the test images."""
    data, images_seen = shared
    trained = train_child(architecture, data, recipe, seed, device, images_seen[index])
    saved = {"architecture": str(architecture), "state_dict": trained.child.cpu().state_dict()}
    saved |= {"image_shape": tuple(data.train.pixels.shape[1:]), "num_classes": data.num_classes}
    return {"top1": trained.accuracy, "top5": trained.top5_accuracy, "saved": utils.as_bytes(saved)}


def choose_architecture(args: argparse.Namespace) -> tuple[Architecture, str]:
    """--architecture, the run folder's best, or the committed one; and the suffix of the files to write."""
    if args.architecture is not None:
        text = str(args.architecture)
        return args.architecture, f"-{text if len(text) <= 200 else f'{text[:180]}-{utils.child_seed(0, text)}'}"
    rows, _ = utils.read_ledger(args.run_dir / "children.jsonl")
    committed = utils.ROOT / "results" / args.dataset.lower() / "best.json"
    if rows:
        dataset = utils.read_json(args.run_dir / "config.json", settings=dict)["settings"].get("dataset")
        if dataset != args.dataset:
            raise InputError(f"{args.run_dir} holds a search on {dataset}: add --dataset to name it")
        best_file = args.run_dir / "best.json"
        best = utils.read_json(best_file) if best_file.exists() else {}
        if best.get("children") == len(rows):
            print(f"best architecture of the search in {args.run_dir}: {best.get('architecture')}")
        else:
            best = utils.ranked(rows.values())[0]
            print(f"the search in {args.run_dir} is not finished: best of {len(rows)} children: {best['architecture']}")
    elif args.run_dir == utils.default_run_dir(args.dataset, args.strategy) and committed.exists():
        best = utils.read_json(committed)
        print(f"no search in {args.run_dir}: taking {best['architecture']} from {committed.relative_to(utils.ROOT)}")
    else:
        raise InputError(f"no search in {args.run_dir}: run --mode generate there first, or name an --architecture")
    try:
        return parse_architecture(str(best["architecture"])), ""
    except (KeyError, ValueError) as error:
        raise InputError(f"no architecture to read in {args.run_dir}: {error}") from None
