"""Was searching worth it? Networks that nobody searched for, trained as long as the one that was found.

python train.py --mode evaluate --references True
"""

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from datasets import Data, Images, in_shared_memory
from finals import Evaluation, Finals, Job, statistics_of
from model import Recipe, on_device, size_or_none, train_child, training_steps
from search_space import Architecture, SearchSpace, parse_architecture
from settings import space_around, within_limits
from utils import child_seed
from workers import Workers

LENET = parse_architecture("k5f8p0-k5f16p0")  # nearest to LeNet-5, with its 6 and 16 filters (LeCun et al. 1998)
RANDOM_NETWORKS = 10
STEPS = "seconds_of_a_step"  # the name under which they are kept


class OnThreeChannels(nn.Module):
    """A network for colour images that takes grey ones, too."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.expand(-1, 3, -1, -1))


@dataclass(frozen=True)
class ReadyMade:
    """A network of torchvision without pretrained weights, to be made like a `Child`."""

    name: str
    settings: tuple = ()

    def __str__(self) -> str:
        return self.name

    def __call__(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        import torchvision  # here, because worker processes that train children import no torchvision

        network = getattr(torchvision.models, self.name)(num_classes=num_classes, **dict(self.settings))
        return OnThreeChannels(network)


READY_MADE = {  # what a reader would take instead
    "ResNet-18": ReadyMade("resnet18"),
    "MobileNetV3-small": ReadyMade(
        "mobilenet_v3_small",
        (
            ("dropout", 0.0),  # it would need a seed of its own
            ("norm_layer", nn.BatchNorm2d),  # torchvision's takes a hundred steps to learn the statistics: too slow
        ),
    ),
}


def compare(run: Evaluation, kept: Finals, train: Callable[[Sequence[Job]], list[dict]]) -> list[dict]:
    """Train networks that nobody searched for; prints and returns their test accuracies."""
    groups = groups_of(run, kept)
    jobs = [job for group in groups.values() for job in group]
    print(f"training networks that nobody searched for: {len(jobs)} trainings")
    finals, rows = iter(train(jobs)), []
    for name, group in groups.items():
        if group:
            rows.append(print_group(name, group, [next(finals) for _ in group], run.data, kept))
        else:
            print(f"  {name}: none is possible on these images, within the limits")
    return rows


def groups_of(run: Evaluation, kept: Finals) -> dict[str, list[Job]]:
    """The trainings of each kind of network.

    Those of the search space get the same epochs as the one that was found, torchvision's the same time.
    """
    args, recipe = run.args, run.recipe
    space, size = space_around(run.architecture, run.searched), functools.partial(size_or_none, data=run.data)

    def allowed(network: Architecture) -> bool:
        return size(network) is not None and within_limits(network, run.data, run.searched)

    def job(network: Architecture | ReadyMade, number: int, how: Recipe) -> Job:
        return Job(network, how, child_seed(args.seed, str(network), "final", number))

    some = random_actions(space, allowed, args.seed)
    groups = {"LeNet-5's layers": [LENET] * args.num_seeds if size(LENET) else []}
    groups["largest network"] = []
    if some:
        large = largest(space, some, lambda network: size(network) if allowed(network) else None)
        groups["largest network"] = [large] * args.num_seeds
    groups["random networks"] = [space.decode(actions) for actions in some]
    jobs = {name: [job(network, i, recipe) for i, network in enumerate(group)] for name, group in groups.items()}
    for name, how in recipes_of_the_same_time(run, kept).items():
        jobs[name] = [job(READY_MADE[name], i, how) for i in range(args.num_seeds)]
    return jobs


def recipes_of_the_same_time(run: Evaluation, kept: Finals) -> dict[str, Recipe]:
    """How torchvision's networks are trained for the time that the one found takes; what a step takes is kept."""
    adam = replace(run.recipe, optimizer="adam", lr=0.002, betas=(0.9, 0.999))  # nearest to what they are trained with
    seconds = kept.find(STEPS, **dict.fromkeys(("found", *READY_MADE), float))
    if seconds is None:
        seconds = {"found": seconds_of_a_step(run.architecture, run.data, run.recipe, run.device)}
        for name, network in READY_MADE.items():
            seconds[name] = seconds_of_a_step(network, run.data, adam, run.device)
        kept.keep(STEPS, seconds)
    epochs = {name: run.recipe.epochs * seconds["found"] / seconds[name] for name in READY_MADE}
    return {name: replace(adam, epochs=epochs[name]) for name in READY_MADE}


def print_group(name: str, jobs: Sequence[Job], finals: Sequence[dict], data: Data, kept: Finals) -> dict:
    """Print a group's test accuracies; returns its row in evaluation.json."""
    row = {"name": name, "architectures": list(dict.fromkeys(str(job.network) for job in jobs))}
    row["epochs"] = jobs[0].recipe.epochs
    row["parameters"] = statistics.fmean(parameters_of(job.network, data) for job in jobs)
    if name in READY_MADE:
        row["seconds_of_a_step"] = kept.find(STEPS)[name]
    row |= statistics_of("top1", finals)
    which = row["architectures"][0] if len(row["architectures"]) == 1 else "a training each"
    spread = f" ± {100 * row['top1_std']:.2f}" if len(jobs) > 1 else ""
    accuracy = f"{row['top1_mean']:.2%}{spread} (n = {len(jobs)})"
    print(f"  {name:<18} {which:<18} {accuracy}   {row['parameters']:,.0f} parameters   {row['epochs']:.3g} epochs")
    return row


def seconds_of_a_step(network: Architecture | ReadyMade, data: Data, recipe: Recipe, device: str) -> float:
    """What one step of a training takes, alone in a process: the median of three longer trainings less a short one."""
    few = data._replace(held_out=Images(*(tensor[:10] for tensor in data.held_out)))
    _, per_epoch, _ = training_steps(recipe, len(data.train.labels))

    def seconds(steps: int) -> float:
        return workers.run(seconds_of_training, network, replace(recipe, epochs=steps / per_epoch), device)

    with Workers(1, in_shared_memory(few), device=device) as workers:
        time = workers.submit(lambda: statistics.median(seconds(25) - seconds(5) for _ in range(3)) / 20).result()
    return max(time, 1e-6)  # it may be negative if other work has disturbed the clock


def seconds_of_training(data: Data, network: Architecture | ReadyMade, recipe: Recipe, device: str) -> float:
    """Runs in a worker process."""
    return train_child(network, on_device(data, device), recipe, 0).seconds


def parameters_of(network: Architecture | ReadyMade, data: Data) -> int:
    if isinstance(network, Architecture):
        return size_or_none(network, data)["parameters"]
    with torch.device("meta"):
        return sum(p.numel() for p in network(tuple(data.train.pixels.shape[1:]), data.num_classes).parameters())


def random_actions(space: SearchSpace, accept: Callable[[Architecture], bool], seed: int) -> list[tuple[int, ...]]:
    """Distinct sequences of actions, uniform among the accepted networks; fewer than ten if those are rare."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for _ in range(100 * RANDOM_NETWORKS):
        draw = [torch.randint(len(token.choices), (), generator=generator).item() for token in space.tokens]
        if accept(space.decode(draw)):
            found[tuple(draw)] = None
        if len(found) == RANDOM_NETWORKS:
            break
    return list(found)


def largest(space: SearchSpace, start: Sequence[tuple[int, ...]], size: Callable) -> Architecture:
    """The network with the most parameters that is found by changing one choice at a time, from the largest of some."""

    def parameters(actions: tuple[int, ...]) -> int:
        found = size(space.decode(actions))
        return found["parameters"] if found else 0

    actions, before = max(start, key=parameters), None
    while actions != before:
        before = actions
        for t, token in enumerate(space.tokens):
            actions = max(((*actions[:t], a, *actions[t + 1 :]) for a in range(len(token.choices))), key=parameters)
    return space.decode(actions)
