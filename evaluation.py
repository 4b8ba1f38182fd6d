"""`--mode evaluate`: train an architecture on all training images, several times, and measure it on the test images."""

import argparse
import io
import json
import math
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from dataclasses import asdict, replace

import torch
from torch import Tensor
from tqdm import tqdm

import datasets
import model
import utils
from datasets import Data, Preparation
from model import PAPER_RECIPE, Child, FromPixels, Recipe, long_enough, measure, on_device, summarize, train_child
from search_space import Architecture, parse_architecture
from utils import InputError
from workers import TaskFailed, Workers

EVALUATION = Recipe(epochs=8, shift=1)
SAME_IN_A_MIRROR = ("FashionMNIST", "CIFAR10")  # clothes, animals and cars; not digits or letters
MOST_DRAWN = 50  # classes in confusion.png and in the line of recalls
Job = tuple[Architecture, Recipe, int]  # what is trained, how, and with which seed


def evaluate(args: argparse.Namespace) -> None:
    """Retrain an architecture with several seeds, print its test accuracies and write them to the run folder."""
    started = time.perf_counter()
    if args.references:
        from benchmarks import references  # here, because it uses what is below
    device = utils.choose_device(args.use_cuda)
    architecture, suffix, settings = choose_architecture(args)
    names = (f"best_child{suffix}.pt", f"best_child{suffix}.pt2", f"confusion{suffix}.png")
    utils.check_foreign(args.run_dir, f"evaluation{suffix}.json", names, architecture=str)
    image_size, searched = args.image_size or settings.get("image_size"), {} if suffix else settings
    data = datasets.evaluation_data(args.dataset, args.data_dir, args.train_images, image_size, searched)
    recipe = final_recipe(args, settings, data)
    size = print_network(architecture, data)
    print(f"training it on {len(data.train.labels):,} images (epochs: {recipe.epochs:g}, seeds: {args.num_seeds})")
    if (args.run_dir / f"evaluation{suffix}.json").exists():
        print(f"evaluation{suffix}.json and best_child{suffix}.pt are there already, and will be replaced")

    seeds = [utils.child_seed(args.seed, str(architecture), "final", i) for i in range(args.num_seeds)]
    finals = train_finals([(architecture, recipe, seed) for seed in seeds], data, device, args.workers)

    result = {"architecture": str(architecture), "dataset": datasets.short_name(args.dataset)}
    confusions = torch.tensor([final["confusions"] for final in finals]).sum(0)  # (classes, classes), of all trainings
    result |= data.preparation._asdict() | measured(finals, confusions)
    result |= {"seeds": seeds, "train_images": len(data.train.labels), "seconds": time.perf_counter() - started}
    result |= size | {"recipe": asdict(recipe), "both_sides": judged_from_both_sides(recipe), "device": device}
    result |= utils.environment(device)
    try:  # first the files: what has taken so long must not be lost
        args.run_dir.mkdir(parents=True, exist_ok=True)
        utils.write_json(args.run_dir / f"evaluation{suffix}.json", result)
        utils.write_atomically(args.run_dir / f"best_child{suffix}.pt", finals[0]["saved"])
        utils.write_atomically(args.run_dir / f"best_child{suffix}.pt2", exported(finals[0]["saved"]))
    finally:  # the numbers, even if a file can't be written
        print_accuracies(result)
    if args.references:
        result["references"] = references.compare(args, settings, data, architecture, device)
        result["seconds"] = time.perf_counter() - started
        utils.write_json(args.run_dir / f"evaluation{suffix}.json", result)
    print(f"time                {utils.duration(result['seconds'])}")
    files = f"best_child{suffix}.pt2 and .pt (the first seed's network, ready to use)"
    picture = f"confusion{suffix}.png" if data.num_classes <= MOST_DRAWN else ""
    print(f"files               {args.run_dir}/ (evaluation{suffix}.json{picture and f', {picture}'}, {files})")
    if picture:
        import plots  # here, because worker processes import this file and none needs matplotlib

        title = f"{architecture} on {result['dataset']}: {len(finals)} trainings"
        plots.save(args.run_dir, {picture: lambda: plots.plot_confusions(confusions, result["classes"], title)})


def measured(finals: Sequence[dict], confusions: Tensor) -> dict:
    """Accuracies, each class's recall (None without test images), and the share of the most frequent class."""
    result = statistics_of("top1", finals) | (statistics_of("top5", finals) if len(confusions) > 5 else {})
    sizes, right = confusions.sum(1).tolist(), confusions.diag().tolist()
    result["recall"] = [n / size if size else None for n, size in zip(right, sizes, strict=True)]
    return result | {"most_frequent_share": max(sizes) / sum(sizes)}


def print_accuracies(result: dict) -> None:
    """Print what `measured` gives."""
    for name in ("top1", "top5"):
        if values := result.get(name, []):
            listed = f"mean ± std, n = {len(values)}: {', '.join(f'{value:.2%}' for value in values)}"
            spread = f" ± {100 * result[f'{name}_std']:.2f}  ({listed})" if len(values) > 1 else "  (n = 1)"
            print(f"{name} test accuracy  {result[f'{name}_mean']:.2%}{spread}")
    print(f"most frequent class {result['most_frequent_share']:.2%} of the test images")
    pairs = zip(result["recall"], result["classes"], strict=True)
    recalls = sorted(pair for pair in pairs if pair[0] is not None)
    least = ", ".join(f"{name} {share:.1%}" for share, name in recalls[:MOST_DRAWN])
    print(f"recall              {least}{f', lowest of {len(recalls)}' if len(recalls) > MOST_DRAWN else ''}")


def final_recipe(args: argparse.Namespace, settings: dict, data: Data) -> Recipe:
    """How the networks are trained: without --eval_epochs never shorter than in the search of these settings."""
    recipe = PAPER_RECIPE if args.child_recipe == "paper" else EVALUATION
    flip = recipe.flip or args.dataset in SAME_IN_A_MIRROR
    epochs = args.eval_epochs or max(recipe.epochs, settings.get("recipe", {}).get("epochs", 0))
    recipe = replace(recipe, epochs=epochs, flip=flip, best_of=1)  # the test set chooses none
    as_it_is = args.eval_epochs or args.dataset in datasets.BUILT_IN
    return recipe if as_it_is else long_enough(recipe, len(data.train.labels))


def judged_from_both_sides(recipe: Recipe) -> bool:
    """Whether predictions are means of those for an image and its mirror image: not for the paper's recipe."""
    return recipe.flip and recipe.schedule != PAPER_RECIPE.schedule


def statistics_of(name: str, finals: Sequence[dict]) -> dict:
    """An accuracy of several trainings, its mean and its standard deviation."""
    values = [final[name] for final in finals]
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {name: values, f"{name}_mean": statistics.fmean(values), f"{name}_std": std}


def print_network(architecture: Architecture, data: Data) -> dict:
    """Print a network's layers with output shapes and parameters; returns its totals."""
    layers = summarize(Child(architecture, tuple(data.train.pixels.shape[1:]), data.num_classes))
    size = model.possible_size(architecture, data)
    width = max(len(layer.name) for layer in layers)
    for name, shape, parameters, _ in layers:
        print(f"  {name:<{width}} {' x '.join(map(str, shape)):>14} {parameters:>9,} parameters")
    print(f"  {architecture}: {size['parameters']:,} parameters, {size['flops'] / 1e6:.1f} million FLOPs an image")
    return size


def train_finals(jobs: Sequence[Job], data: Data, device: str, num_workers: int) -> list[dict]:
    """Train architectures, each with a recipe and a seed, in parallel; top-1, top-5 and, of a `Child`, weights."""
    images_seen = torch.zeros(len(jobs), dtype=torch.int64).share_memory_()
    total = sum(math.prod(model.training_steps(recipe, len(data.train.labels))[::2]) for _, recipe, _ in jobs)  # images
    with (
        Workers(min(num_workers, len(jobs)), shared=(datasets.in_shared_memory(data), images_seen)) as workers,
        tqdm(total=total, unit=" images", unit_scale=True, dynamic_ncols=True) as bar,
    ):
        job_of = {workers.submit(workers.run, final_child, index, job, device): job for index, job in enumerate(jobs)}
        done = set()
        while len(done) < len(jobs):
            done, _ = wait(job_of, timeout=0.5, return_when=FIRST_EXCEPTION)
            bar.update(images_seen.sum().item() - bar.n)
            for training in done:  # the first failure ends all
                if isinstance(error := training.exception(), TaskFailed):
                    raise InputError(f"{job_of[training][0]} can't be trained: {error}; try fewer --workers")
                training.result()
        return [training.result() for training in job_of]


def final_child(shared: tuple, index: int, job: Job, device: str) -> dict:
    """Runs in a worker process: train a network on all training images and measure it on the test images."""
    (data, images_seen), (architecture, recipe, seed) = shared, job
    there = on_device(data, device)
    trained = train_child(architecture, there, recipe, seed, images_seen[index])
    top1, top5, both_sides = trained.accuracy, trained.top5_accuracy, judged_from_both_sides(recipe)
    if both_sides:
        top1, top5 = measure(trained.child, there.held_out, both_sides)
    accuracies, child = {"top1": top1, "top5": top5}, trained.child.cpu().eval()
    if callable(architecture):
        return accuracies
    saved = {"architecture": str(architecture), "state_dict": child.state_dict()}
    saved |= {"image_shape": tuple(data.train.pixels.shape[1:]), "num_classes": data.num_classes}
    saved |= data.preparation._asdict() | {"both_sides": both_sides}
    return accuracies | {"confusions": confused(child, data, both_sides), "saved": utils.as_bytes(saved)}


@torch.inference_mode()
def confused(child: Child, data: Data, both_sides: bool = False) -> list[list[int]]:
    """How many test images of each class a child, on the CPU, takes for which (classes, classes)."""
    network = FromPixels(child, both_sides)
    predicted = torch.cat([network(pixels).argmax(1) for pixels in data.held_out.pixels.split(500)])
    pairs = data.held_out.labels * data.num_classes + predicted
    return pairs.bincount(minlength=data.num_classes**2).view(data.num_classes, -1).tolist()


def exported(saved: bytes) -> bytes:
    """A trained child as a program of `torch.export`, for any number of images; it runs without this repository."""
    found = torch.load(io.BytesIO(saved), weights_only=True)
    child = Child(parse_architecture(found["architecture"]), found["image_shape"], found["num_classes"])
    child.load_state_dict(found["state_dict"])
    child.to(memory_format=torch.contiguous_format)  # or torch.export.save warns
    pixels = torch.zeros(2, *found["image_shape"], dtype=torch.uint8)
    shapes = {"pixels": {0: torch.export.Dim("images", min=1)}}
    buffer = io.BytesIO()
    program = torch.export.export(FromPixels(child, found["both_sides"]).eval(), (pixels,), dynamic_shapes=shapes)
    prepared = {"preparation.json": json.dumps({name: found.get(name) for name in Preparation._fields})}
    torch.export.save(program, buffer, extra_files=prepared)
    return buffer.getvalue()


def choose_architecture(args: argparse.Namespace) -> tuple[Architecture, str, dict]:
    """--architecture, the run folder's best, or the committed one; a suffix of files; the settings of the search."""
    rows, _ = utils.read_ledger(args.run_dir / "children.jsonl")
    settings = utils.read_json(args.run_dir / "config.json", settings=dict)["settings"] if rows else {}
    name, own = datasets.short_name(args.dataset), args.dataset not in datasets.BUILT_IN
    same = settings.get("dataset") == name and bool(settings.get("images")) == own  # a folder may be called MNIST
    if args.architecture is not None:
        text = str(args.architecture)
        short = text if len(text) <= 200 else f"{text[:180]}-{utils.child_seed(0, text)}"
        return args.architecture, f"-{short}", settings if same else {}
    if rows and not same and not (own and settings.get("images")):  # of one's own, the pictures decide and no name
        before = f"{settings.get('dataset')}{', images of your own' if settings.get('images') else ''}"
        raise InputError(f"{args.run_dir} holds a search on {before}, not on {args.dataset}: name it by --dataset")
    said = f"best architecture of the search in {args.run_dir}"
    file, committed = args.run_dir / "best.json", utils.ROOT / "results" / name.lower() / "best.json"
    if not rows:
        if own or args.run_dir != utils.default_run_dir(name, args.strategy) or not committed.exists():
            raise InputError(f"no search in {args.run_dir}: run --mode generate there first, or name an --architecture")
        file, said = committed, f"no search in {args.run_dir}: taken from {committed.relative_to(utils.ROOT)}"
    best = utils.read_json(file) if file.exists() else {}
    if rows and best.get("children") != len(rows):
        said = f"the search in {args.run_dir} is not finished: best of {len(rows)} children"
        best = max(rows.values(), key=lambda row: (row["reward"], -row["child"]))  # of equal ones the earliest
    try:
        architecture = parse_architecture(str(best["architecture"]))
    except (KeyError, ValueError) as error:
        raise InputError(f"no architecture to read in {args.run_dir}: {error}") from None
    print(f"{said}: {architecture}")
    return architecture, "", settings
