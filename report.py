"""What a search shows and leaves: progress, files, pictures, and a report."""

import argparse
import math
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

import datasets
import utils
from datasets import Data
from model import training_steps
from policy_gradient import PolicyGradient
from search_space import parse_architecture
from settings import Run

CHOSEN_BY = "highest sum of the accuracy's rank and {:.2f} times the policy's estimate of it"
PROGRESS = "reward {reward:.4f}, best {best_reward:.4f}, entropy {entropy:.1f} nats"
NETWORK = "{architecture}   {val_accuracy:.2%}{both}   {parameters:,} parameters   child {child}"


class Progress(ExitStack):
    """The progress bar of a search, its metrics in TensorBoard, and how its policy went."""

    def __init__(self, folder: Path, num_children: int, num_done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here, because worker processes import this file

        for events in folder.glob("events.out.tfevents.*"):
            if b"search/best_reward" in events.read_bytes():  # an earlier run has written it, and no other program
                events.unlink()
        super().__init__()  # the stack closes what is entered below
        self.events = self.enter_context(SummaryWriter(folder))
        self.bar = self.enter_context(tqdm(total=num_children, initial=num_done, unit="child", dynamic_ncols=True))
        self.shares: list[list[list[float]]] = []  # [update][token][choice], among samples of the policy

    def show(self, search: PolicyGradient, metrics: dict) -> None:
        """An update's metrics, and the share of each choice among the latest samples."""
        for name in ("reward", "best_reward", "baseline", "entropy", "loss"):
            self.events.add_scalar(f"search/{name}", metrics[name], metrics["update"])
        self.bar.set_postfix_str(PROGRESS.format(**metrics))
        tokens = zip(search.rollout.actions.T, search.controller.token_choices(), strict=False)  # (samples,), choices
        self.shares.append([(token.bincount(minlength=n) / len(token)).tolist() for token, n in tokens])


def noise_of_accuracy(ranking: list[dict], data: Data) -> float:
    """The standard deviation of the difference between two finalists' mean accuracies, if only chance makes it.

    Chance comes from the trainings and from the validation images, which are few: the larger one counts.
    """
    pairs = [row["val_accuracies"] for row in ranking if len(row.get("val_accuracies", ())) == 2]
    variances = [(first - second) ** 2 / 2 for first, second in pairs]  # an estimate of one training's from each pair
    of_trainings = math.sqrt(sum(variances) / (len(variances) or 1))  # a difference of means of two varies as one does
    # One more image counts as right and one as wrong (Agresti & Coull 1998), so that 100 % of a few is not certain.
    n = len(data.held_out.labels) + 2
    accuracy = (len(data.held_out.labels) * ranking[0]["val_accuracy"] + 1) / n
    of_images = math.sqrt(accuracy * (1 - accuracy) / n)
    return max(of_trainings, of_images)


def with_means(rows: dict[int, dict], ranking: list[dict]) -> dict[int, dict]:
    """The ledger's rows by child, those of finalists with the means of both their trainings."""
    return rows | {row["child"]: row for row in ranking}


def save(run: Run, search: PolicyGradient, rows: dict, ranking: list[dict]) -> None:
    """Write controller.pt and best.json."""
    args, controller, best = run.args, search.controller, ranking[0]
    rebuild = {"num_choices": controller.num_choices, "names": controller.names, "hidden_size": args.hidden_size}
    rebuild |= {"num_layers": args.controller_layers, "state_dict": controller.state_dict()}
    utils.write_atomically(args.run_dir / "controller.pt", utils.serialize(rebuild))
    chosen = {key: best[key] for key in ("architecture", "val_accuracy", "child", "parameters")}
    chosen |= {"dataset": datasets.short_name(args.dataset), "seed": args.seed, "strategy": args.strategy}
    keys = ("architecture", "child", "val_accuracies")
    chosen["finalists"] = [{key: row[key] for key in keys} for row in ranking if "val_accuracies" in row]
    rule = f"{CHOSEN_BY.format(search.trust)}, of {len(rows)} children"
    if chosen["finalists"]:
        rule += f", and of two trainings of the first {len(ranking)}"
    chosen |= {"children": len(rows), "chosen_by": rule}
    utils.write_json(args.run_dir / "best.json", chosen)


def draw(run: Run, rows: dict, ranking: list[dict], shares: list) -> None:
    """Write the pictures of a search; PictureMissing if one can't be."""
    import plots  # here, because worker processes import this file and none needs matplotlib

    args, best = run.args, ranking[0]
    dataset = datasets.short_name(args.dataset)
    title = f"{args.strategy} search on {dataset}: {len(rows)} children, seed {args.seed}"
    ordered = [rows[child] for child in sorted(rows)]
    latest = with_means(rows, ranking).values()
    noise = noise_of_accuracy(ranking, run.data)
    architecture = parse_architecture(best["architecture"])
    of_best = "the best network, each arrow in the colour of its source"
    figures = {
        "search.png": lambda: plots.plot_search(ordered, best, run.space.tokens, shares, title),
        "front.png": lambda: plots.plot_front(latest, best, noise, title),
        "best.png": lambda: plots.plot_architecture(architecture, of_best),
    }
    plots.save(args.run_dir, figures)


def smallest(finalists: Sequence[dict], noise: float) -> dict:
    """The finalist with the fewest parameters whose mean accuracy is at most `noise` below the first one's."""
    good = (row for row in finalists if row["val_accuracy"] >= finalists[0]["val_accuracy"] - noise)
    return min(good, key=lambda row: (row["parameters"], row["child"]))


def print_rare_class(data: Data, noise: float) -> None:
    """Print which class has so few of the validation images that the accuracy says nothing about it."""
    sizes = data.held_out.labels.bincount(minlength=data.num_classes)
    few, least, n = sizes.min().item(), sizes.argmin().item(), len(data.held_out.labels)
    rare = few < n / data.num_classes / 2  # where there are many classes each has few images
    if rare and (few < 10 or few / n < 2 * noise):
        name = data.preparation.classes[least] if data.preparation else least
        found = "only the recall of --mode evaluate shows whether it is recognised"
        print(f"rarest class        {name}, {few:,} of the {n:,} validation images: {found}")


def show(run: Run, search: PolicyGradient, rows: dict, ranking: list[dict], clock: utils.Clock) -> None:
    """Print what a search found, what it cost, and how to go on."""
    args, data = run.args, run.data
    finalists = [row for row in ranking if "val_accuracies" in row]
    failed = sum("error" in row for row in rows.values()) + sum(len(row["val_accuracies"]) < 2 for row in finalists)
    if search.stopped_early and len(rows) < args.num_children:
        print(f"ended after {len(rows)} of {args.num_children} children: {search.stopped_early}")
    print(f"best architecture   {ranking[0]['architecture']}   validation accuracy {ranking[0]['val_accuracy']:.2%}")
    print(f"chosen by           the {CHOSEN_BY.format(search.trust)}, a weight that grows with the children")
    for place, row in enumerate(ranking[:5], start=1):
        both = " = mean of " + ", ".join(f"{a:.2%}" for a in row["val_accuracies"]) if finalists else ""
        print(f"  {place}. {NETWORK.format(both=both, **row)}")
    trained_again = f", the best {len(finalists)} twice" if finalists else ""
    print(f"children            {len(rows)} trained{trained_again} ({failed} failed)")
    batch_size, _, steps = training_steps(run.recipe, len(data.train.labels))
    n, noise = len(data.held_out.labels), noise_of_accuracy(ranking, data)
    print(f"each training       {steps} steps of {batch_size} images")
    majority = f"majority class alone {data.held_out.labels.bincount().max().item() / n:.2%}"
    print(f"each accuracy       of {n:,} validation images: steps of {100 / n:.2f} points; {majority}")
    print_rare_class(data, noise)
    significant = 100 * 2 * noise  # two standard deviations, in points
    print(f"noise               differences below {significant:.2f} points between two networks are not significant")
    if finalists:
        network = NETWORK.format(both="", **smallest(finalists, noise))
        print(f"smallest as good    {network} (a finalist, within {100 * noise:.2f} points of the best)")
    if search.refused:
        print(f"above the limits    {len(search.refused)} networks sampled, not trained")
    if again := search.samples - len(rows):
        print(f"samples             {search.samples}, {again} of them sampled before and not trained again")
    if clock.total is None:
        print(f"time                unknown, because {clock.file} was deleted")
    else:
        wall, slots, main_cpu = (clock.total[key] for key in ("wall", "workers", "main_cpu"))
        seconds = sum(row["seconds"] for row in with_means(rows, ranking).values())
        used = f"workers training {seconds / (slots or 1):.1%} of it, search overhead {main_cpu / (wall or 1):.1%}"
        print(f"time                {utils.duration(wall)}; {used}")
    events = f"tensorboard --logdir {shlex.quote(str(args.run_dir))}"
    print(f"files               {args.run_dir}/ (search.png, front.png; {events})")
    print(f"evaluate it with    {evaluate_command(args)}", flush=True)


def evaluate_command(args: argparse.Namespace) -> str:
    """The command that evaluates a search's network, with the flags that differ from what they are without a word."""
    defaults = {
        "dataset": "MNIST",
        "data_dir": Path(utils.relative_to_cwd("data")),
        "image_size": None,
        "child_recipe": "fast",
        "run_dir": utils.default_run_dir(datasets.short_name(args.dataset)),
    }
    words = ["python", utils.relative_to_cwd("train.py"), "--mode", "evaluate"]
    for name, default in defaults.items():
        value = getattr(args, name)
        if value != default:
            words += [f"--{name}", str(value)]
    return shlex.join(words)
