"""`--mode evaluate`: train an architecture on all training images, several times, and measure it on the test images."""

import argparse
import functools
import heapq
import io
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import datasets
import model
import references
import utils
from datasets import Data, Preparation
from finals import Evaluation, Finals, Job, open_finals, statistics_of
from model import PAPER_RECIPE, Child, FromPixels, Recipe, measure, on_device, summarize, train_child, with_min_steps
from search_space import Architecture, parse_architecture
from settings import may_mirror
from utils import InputError
from workers import TaskFailed, Workers

EVALUATION_RECIPE = Recipe(epochs=8, shift=1)
MAX_CLASSES_SHOWN = 50  # classes in confusion.png and in the line of recalls


def evaluate(args: argparse.Namespace) -> None:
    """Retrain an architecture with several seeds, print its test accuracies and write them to the run folder."""
    started = time.perf_counter()
    run = make_evaluation(args)
    size = model.size_or_none(run.architecture, run.data)
    print_network(run.architecture, run.data, size)
    num_images, epochs = len(run.data.train.labels), run.recipe.epochs
    print(f"training it on {num_images:,} images (epochs: {epochs:g}, seeds: {args.num_seeds})")
    suffix, file = run.suffix, args.run_dir / f"evaluation{run.suffix}.json"
    with open_finals(args.run_dir / f"finals{suffix}", settings_of_finals(run)) as kept:
        if file.exists():
            print(f"{file.name} and best_child{suffix}.pt are there already, and will be replaced")
        train = functools.partial(train_finals, data=run.data, device=run.device, num_workers=args.workers, kept=kept)
        finals = train(final_jobs(run))

        confusions = torch.tensor([final["confusions"] for final in finals]).sum(0)  # (classes, classes), of all
        result = evaluation_json(run, finals, confusions, size) | {"seconds": kept.seconds_since(started)}
        try:  # first the files: what has taken so long must not be lost
            write_files(args.run_dir, suffix, result, finals[0]["saved"])
        finally:  # the numbers are printed even if a file can't be written
            print_accuracies(result)
        if args.references:
            result["references"] = references.compare(run, kept, train)
            result["seconds"] = kept.seconds_since(started)
            utils.write_json(file, result)
        kept.finish()
    print(f"time                {utils.duration(result['seconds'])}")
    picture = f"confusion{suffix}.png" if len(confusions) <= MAX_CLASSES_SHOWN else ""
    files = f"best_child{suffix}.pt2 and .pt (the first seed's network, ready to use)"
    print(f"files               {args.run_dir}/ ({file.name}{picture and f', {picture}'}, {files})")
    if picture:
        import plots  # here, because worker processes import this file and none needs matplotlib

        title = f"{run.architecture} on {result['dataset']}: {len(finals)} trainings"
        plots.save(args.run_dir, {picture: lambda: plots.plot_confusions(confusions, result["classes"], title)})


def make_evaluation(args: argparse.Namespace) -> Evaluation:
    """All that the flags describe."""
    device = utils.choose_device(args.use_cuda)
    chosen = choose_architecture(args)
    image_size = args.image_size or chosen.searched.get("image_size")
    searched = chosen.searched if chosen.found else {}  # then the images must be the same
    data = datasets.evaluation_data(args.dataset, args.data_dir, args.train_images, image_size, searched)
    recipe = final_recipe(args, chosen.searched, data)
    architecture, suffix = chosen.architecture.widened(args.extra_filters), chosen.suffix
    if args.extra_filters:
        suffix += f"-{args.extra_filters}_more_filters"
    names = (f"best_child{suffix}.pt", f"best_child{suffix}.pt2", f"confusion{suffix}.png")
    utils.check_foreign(args.run_dir, f"evaluation{suffix}.json", names, architecture=str)
    return Evaluation(args, architecture, suffix, chosen.searched, data, recipe, device)


def settings_of_finals(run: Evaluation) -> dict:
    """All that every final training depends on."""
    pictures = datasets.path_of_pictures(run.args.dataset, run.args.data_dir)
    return {
        "architecture": str(run.architecture),
        "extra_filters": run.architecture.extra_filters,
        "dataset": datasets.short_name(run.args.dataset),
        "images": datasets.fingerprint(run.data) if pictures else None,
        "train_images": run.args.train_images,
        "seed": run.args.seed,
        "device": run.device,
        "version": utils.COMPATIBLE_WITH,
        **run.data.preparation._asdict(),  # it stands in the file of the weights
        **asdict(run.recipe),
    }


def final_jobs(run: Evaluation) -> list[Job]:
    """A training for each seed; the network of the first one is returned."""
    args, text = run.args, str(run.architecture)
    seeds = [utils.child_seed(args.seed, text, "final", i) for i in range(args.num_seeds)]
    return [Job(run.architecture, run.recipe, seed, keep_weights=seed == seeds[0]) for seed in seeds]


def evaluation_json(run: Evaluation, finals: Sequence[dict], confusions: Tensor, size: dict) -> dict:
    """The content of evaluation.json."""
    environments = []  # where its trainings ran: more than one if it went on elsewhere
    for final in finals:
        if final["environment"] not in environments:
            environments.append(final["environment"])
    return {
        "architecture": str(run.architecture),
        "extra_filters": run.architecture.extra_filters,
        "dataset": datasets.short_name(run.args.dataset),
        **run.data.preparation._asdict(),
        **summarize_tests(finals, confusions),
        "seeds": [job.seed for job in final_jobs(run)],
        "train_images": len(run.data.train.labels),
        "test_images_in_training": datasets.count_repeated(run.data.held_out, run.data.train),
        **size,
        "recipe": asdict(run.recipe),
        "both_sides": judged_from_both_sides(run.recipe),
        "device": run.device,
        **environments[0],
        "other_environments": environments[1:],
    }


def write_files(run_dir: Path, suffix: str, result: dict, saved: bytes) -> None:
    """Write the accuracies and the first seed's network."""
    utils.write_json(run_dir / f"evaluation{suffix}.json", result)
    utils.write_atomically(run_dir / f"best_child{suffix}.pt", saved)
    utils.write_atomically(run_dir / f"best_child{suffix}.pt2", exported(saved))


def summarize_tests(finals: Sequence[dict], confusions: Tensor) -> dict:
    """Accuracies, each class's recall (None without test images), and the share of the most frequent class."""
    result = statistics_of("top1", finals)
    if len(confusions) > 5:  # of five classes all are among the first five
        result |= statistics_of("top5", finals)
    sizes = confusions.sum(1).tolist()
    right = confusions.diag().tolist()
    result["recall"] = [n / size if size else None for n, size in zip(right, sizes, strict=True)]
    result["most_frequent_share"] = max(sizes) / sum(sizes)
    return result


def print_accuracies(result: dict) -> None:
    """Print what `summarize_tests` gives."""
    for name in ("top1", "top5"):
        if values := result.get(name, []):
            listed = f"mean ± std, n = {len(values)}: {', '.join(f'{value:.2%}' for value in values)}"
            spread = f" ± {100 * result[f'{name}_std']:.2f}  ({listed})" if len(values) > 1 else "  (n = 1)"
            print(f"{name} test accuracy  {result[f'{name}_mean']:.2%}{spread}")
    print(f"most frequent class {result['most_frequent_share']:.2%} of the test images")
    pairs = zip(result["recall"], result["classes"], strict=True)
    recalls = sorted(pair for pair in pairs if pair[0] is not None)
    least = ", ".join(f"{name} {share:.1%}" for share, name in recalls[:MAX_CLASSES_SHOWN])
    print(f"recall              {least}{f', lowest of {len(recalls)}' if len(recalls) > MAX_CLASSES_SHOWN else ''}")


def final_recipe(args: argparse.Namespace, searched: dict, data: Data) -> Recipe:
    """How the networks are trained: without --eval_epochs never shorter than in the search, if there was one."""
    recipe = PAPER_RECIPE if args.child_recipe == "paper" else EVALUATION_RECIPE
    flip = may_mirror(args, searched.get("mirror"))
    epochs = args.eval_epochs or max(recipe.epochs, searched.get("recipe", {}).get("epochs", 0))
    recipe = replace(recipe, epochs=epochs, flip=flip, precision=args.precision, best_of=1)  # the test set chooses none
    as_it_is = args.eval_epochs is not None or args.dataset in datasets.BUILT_IN
    return recipe if as_it_is else with_min_steps(recipe, len(data.train.labels))


def judged_from_both_sides(recipe: Recipe) -> bool:
    """Whether predictions are means of those for an image and its mirror image: not for the paper's recipe."""
    return recipe.flip and recipe.schedule != PAPER_RECIPE.schedule


def print_network(architecture: Architecture, data: Data, size: dict[str, int] | None) -> None:
    """Print a network's layers with output shapes and parameters, and its size; ImpossibleNetwork if it has none."""
    layers = summarize(Child(architecture, tuple(data.train.pixels.shape[1:]), data.num_classes))
    width = max(len(layer.name) for layer in layers)
    for name, shape, parameters, _ in layers:
        print(f"  {name:<{width}} {' x '.join(map(str, shape)):>14} {parameters:>9,} parameters")
    print(f"  {architecture}: {size['parameters']:,} parameters, {size['flops'] / 1e6:.1f} million FLOPs an image")


def train_finals(jobs: Sequence[Job], data: Data, device: str, num_workers: int, kept: Finals) -> list[dict]:
    """The results of final trainings, in parallel: each is kept as soon as it has ended, and none is repeated."""
    finals = [kept.find_training(job) for job in jobs]
    missing = [index for index, final in enumerate(finals) if final is None]
    if len(missing) < len(jobs):
        print(f"{len(jobs) - len(missing)} of {len(jobs)} trainings have ended before: taken from {kept.folder}")
    if not missing:
        return finals
    environment = utils.environment(device)
    progress = torch.zeros(len(jobs), 2, dtype=torch.float64).share_memory_()  # (jobs, 2): images seen, accuracy
    num_workers = min(num_workers, len(missing))
    with (
        Workers(num_workers, shared=(datasets.in_shared_memory(data), progress)) as workers,
        ProgressLine(jobs, finals, len(data.train.labels), num_workers) as line,
    ):
        training_of = {i: workers.submit(workers.run, final_child, i, jobs[i], device) for i in missing}
        while missing:
            wait([training_of[i] for i in missing], timeout=0.5, return_when=FIRST_COMPLETED)
            ended = [index for index in missing if training_of[index].done()]
            failed = [index for index in ended if training_of[index].exception()]
            for index in [index for index in ended if index not in failed]:
                finals[index] = training_of[index].result() | {"environment": environment}
                missing.remove(index)
                try:
                    kept.keep_training(jobs[index], finals[index])
                except OSError as error:  # its numbers are printed at the end all the same
                    line.write(f"a training that has ended can't be kept: {error}", file=sys.stderr)
            for index in failed:  # the first failure ends all
                error = training_of[index].exception()
                if isinstance(error, TaskFailed):
                    raise InputError(f"{jobs[index].network} can't be trained: {error}; try fewer --workers")
                raise error
            line.show(progress, missing)
    return finals


class ProgressLine(tqdm):
    """How far trainings are, when the last one will end, and the running accuracy of the first that has not ended.

    It counts the images that the busiest process has to train on, because these take the time.
    """

    def __init__(self, jobs: Sequence[Job], finals: Sequence[dict | None], num_images: int, num_workers: int) -> None:
        self.images = [images_of(job, num_images) for job in jobs]
        self.num_processes = num_workers
        total = self.images_ahead(self.images)
        ahead = self.images_ahead([n for n, final in zip(self.images, finals, strict=True) if final is None])
        line = "{percentage:3.0f}%|{bar}| {elapsed} passed, {remaining} left{postfix}"
        settings = {"total": total, "initial": total - ahead, "smoothing": 0, "bar_format": line}
        super().__init__(dynamic_ncols=True, **settings)

    def images_ahead(self, images: Sequence[float]) -> float:
        """Images of the busiest process, when each takes the next training as soon as it is free."""
        busy = [0.0] * self.num_processes
        for n in images:
            heapq.heapreplace(busy, busy[0] + n)
        return max(busy)

    def show(self, progress: Tensor, missing: Sequence[int]) -> None:
        """Move the line to where the trainings are."""
        self.n = self.total - self.images_ahead([self.images[i] - progress[i, 0].item() for i in missing])
        accuracy = progress[missing[0], 1].item() if missing else 0.0
        self.set_postfix_str(f"training accuracy {accuracy:.1%}" if accuracy else "")


def images_of(job: Job, num_images: int) -> int:
    """The images that a training goes through, each as often as it does."""
    batch_size, _, num_steps = model.training_steps(job.recipe, num_images)
    return batch_size * num_steps


def final_child(shared: tuple, index: int, job: Job, device: str) -> dict:
    """Runs in a worker process: train a network on all training images and measure it on the test images."""
    data, progress = shared
    there, both_sides = on_device(data, device), judged_from_both_sides(job.recipe)
    trained = train_child(job.network, there, job.recipe, job.seed, progress[index])
    top1, top5 = trained.accuracy, trained.top5_accuracy
    if both_sides or job.recipe.precision != "float32":  # the network is used in float32
        top1, top5 = measure(trained.child, there.held_out, both_sides)
    final = {"top1": top1, "top5": top5}
    if isinstance(job.network, Architecture):
        final["confusions"] = confusion_matrix(trained.child.eval(), there, both_sides)
    if job.keep_weights:
        saved = {
            "architecture": str(job.network),
            "extra_filters": job.network.extra_filters,
            "state_dict": trained.child.cpu().state_dict(),
            "image_shape": tuple(data.train.pixels.shape[1:]),
            "num_classes": data.num_classes,
            **data.preparation._asdict(),
            "both_sides": both_sides,
        }
        final["saved"] = utils.serialize(saved)
    return final


@torch.inference_mode()
def confusion_matrix(child: Child, data: Data, both_sides: bool = False) -> list[list[int]]:
    """How many test images of each class a child takes for which (classes, classes); both are on one device."""
    network = FromPixels(child, both_sides)
    predicted = torch.cat([network(pixels).argmax(1) for pixels in data.held_out.pixels.split(500)])
    pairs = data.held_out.labels.cpu() * data.num_classes + predicted.cpu()
    return pairs.bincount(minlength=data.num_classes**2).view(data.num_classes, -1).tolist()


def exported(saved: bytes) -> bytes:
    """A trained child as a program of `torch.export`, for any number of images; it runs without this repository."""
    found = torch.load(io.BytesIO(saved), weights_only=True)
    architecture = parse_architecture(found["architecture"]).widened(found.get("extra_filters", 0))
    child = Child(architecture, found["image_shape"], found["num_classes"])
    child.load_state_dict(found["state_dict"])
    child.to(memory_format=torch.contiguous_format)  # or torch.export.save warns
    pixels = torch.zeros(2, *found["image_shape"], dtype=torch.uint8)
    shapes = {"pixels": {0: torch.export.Dim("images", min=1)}}
    buffer = io.BytesIO()
    program = torch.export.export(FromPixels(child, found["both_sides"]).eval(), (pixels,), dynamic_shapes=shapes)
    prepared = {"preparation.json": json.dumps({name: found.get(name) for name in Preparation._fields})}
    torch.export.save(program, buffer, extra_files=prepared)
    return buffer.getvalue()


class Chosen(NamedTuple):
    """The network that `--mode evaluate` trains."""

    architecture: Architecture
    suffix: str  # stands in the names of its files
    searched: dict  # settings of the search in the run folder, if it is one on this data set; otherwise empty
    found: bool = False  # whether that search has found it: then the images must be the same


def choose_architecture(args: argparse.Namespace) -> Chosen:
    """The network to train: --architecture, or the best one of the run folder's search, or the committed one.

    InputError if the run folder has a search on another data set, or if there is no network.
    """
    rows, _ = utils.read_ledger(args.run_dir / "children.jsonl")
    searched = utils.read_json(args.run_dir / "config.json", settings=dict)["settings"] if rows else {}
    on_this_dataset = is_search_on(searched, args)
    if args.architecture is not None:
        suffix = f"-{short_text(args.architecture)}"  # the files of the search's own network are not replaced
        return Chosen(args.architecture, suffix, searched if on_this_dataset else {})
    if not rows:
        return Chosen(committed_architecture(args), suffix="", searched={})
    if not on_this_dataset:
        raise InputError(f"{args.run_dir} holds {search_on_others(searched, args)}")
    return Chosen(best_of_search(args.run_dir, rows), suffix="", searched=searched, found=True)


def is_search_on(searched: dict, args: argparse.Namespace) -> bool:
    """Whether a search with these settings used this data set; a folder may be called MNIST.

    Of the reader's own pictures the names do not count: whether they are the same is seen when they are read.
    """
    own = args.dataset not in datasets.BUILT_IN
    pictures = datasets.path_of_pictures(args.dataset, args.data_dir)
    same_kind = bool(searched.get("images")) == (pictures is not None)
    return same_kind and (own or searched.get("dataset") == args.dataset)


def search_on_others(searched: dict, args: argparse.Namespace) -> str:
    """What to say of a search that used another data set, and what to do."""
    pictures = searched.get("images")
    if searched.get("dataset") == args.dataset == "CIFAR10":
        used, missing = ("pictures", "they are") if pictures else ("archive", "it is")
        return f"a search on the {used} of CIFAR10, and {missing} not what {args.data_dir} has now: use --data_dir"
    own = ", images of your own" if pictures else ""
    return f"a search on {searched.get('dataset')}{own}, not on {args.dataset}: name it by --dataset"


def short_text(architecture: Architecture) -> str:
    """An architecture's text form, cut where it would be too long for a file's name."""
    text = str(architecture)
    return text if len(text) <= 200 else f"{text[:180]}-{utils.child_seed(0, text)}"


def best_of_search(run_dir: Path, rows: dict[int, dict]) -> Architecture:
    """The network that a search returned, or the best so far of one that is not finished."""
    file = run_dir / "best.json"
    best = utils.read_json(file) if file.exists() else {}
    is_finished = best.get("children") == len(rows)  # else the file is that of a smaller search that goes on
    if is_finished:
        return named_architecture(best, run_dir, f"best architecture of the search in {run_dir}")
    best = max(rows.values(), key=lambda row: (row["reward"], -row["child"]))  # the earliest of equal ones
    return named_architecture(best, run_dir, f"the search in {run_dir} is not finished: best of {len(rows)} children")


def committed_architecture(args: argparse.Namespace) -> Architecture:
    """The network in `results/`, for the default run folder without a search."""
    name = datasets.short_name(args.dataset)
    file = utils.ROOT / "results" / name.lower() / "best.json"
    usual = args.dataset in datasets.BUILT_IN and args.run_dir == utils.default_run_dir(name, args.strategy)
    if not usual or not file.exists():
        raise InputError(f"no search in {args.run_dir}: run --mode generate there first, or name an --architecture")
    said = f"no search in {args.run_dir}: taken from {file.relative_to(utils.ROOT)}"
    return named_architecture(utils.read_json(file), args.run_dir, said)


def named_architecture(best: dict, run_dir: Path, said: str) -> Architecture:
    """The architecture that best.json or a ledger's row names; prints it, and what is `said` of it."""
    try:
        architecture = parse_architecture(str(best["architecture"]))
    except (KeyError, ValueError) as error:
        raise InputError(f"no architecture to read in {run_dir}: {error}") from None
    print(f"{said}: {architecture}")
    return architecture
