"""Was searching worth it? Networks that nobody searched for, trained as long as the one that was found.

python train.py --mode evaluate --references True
"""

import argparse
import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from datasets import Data, Images, in_shared_memory
from evaluation import final_recipe, statistics_of, train_finals
from model import Recipe, on_device, possible_size, train_child, training_steps
from search_space import Architecture, PaperSpace, SearchSpace, SmallSpace, parse_architecture
from settings import within_limits
from utils import child_seed
from workers import Workers

LENET = parse_architecture("k5f8p0-k5f16p0")  # nearest to LeNet-5, with its 6 and 16 filters (LeCun et al. 1998)
RANDOM_NETWORKS = 10


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
            ("dropout", 0.0),  # which would need a seed of its own
            ("norm_layer", nn.BatchNorm2d),  # torchvision's takes a hundred steps to learn the statistics: too slow
        ),
    ),
}


def compare(args: argparse.Namespace, settings: dict, data: Data, found: Architecture, device: str) -> list[dict]:
    """Train networks that nobody searched for; prints and returns their test accuracies.

    Those of the search space get the same epochs as the one that was found, torchvision's the same time.
    """
    space, recipe = SmallSpace(len(found.layers)), final_recipe(args, settings, data)
    if found.hidden is None:
        pooling = sum(layer.pool for layer in found.layers)
        space = PaperSpace(len(found.layers), settings.get("strides", "s" in str(found)), pooling)
    size = functools.partial(possible_size, data=data)
    some = random_actions(space, lambda network: size(network) and within_limits(network, data, settings), args.seed)
    groups = {"LeNet-5's layers": [LENET] * args.num_seeds if size(LENET) else []}
    groups["largest network"] = [largest(space, some, size)] * args.num_seeds if some else []
    groups["random networks"] = [space.decode(actions) for actions in some]
    jobs = [(network, recipe, i) for group in groups.values() for i, network in enumerate(group)]
    seconds = {str(found): seconds_of_a_step(found, data, recipe, device)}
    for name, network in READY_MADE.items():
        groups[name] = [network] * args.num_seeds
        adam = replace(recipe, optimizer="adam", lr=0.002, betas=(0.9, 0.999))  # nearest to what they are trained with
        seconds[str(network)] = seconds_of_a_step(network, data, adam, device)
        adam = replace(adam, epochs=recipe.epochs * seconds[str(found)] / seconds[str(network)])
        jobs += [(network, adam, i) for i in range(args.num_seeds)]
    print(f"training networks that nobody searched for: {len(jobs)} trainings")
    jobs = [(network, how, child_seed(args.seed, str(network), "final", i)) for network, how, i in jobs]
    finals, rows = iter(train_finals(jobs, data, device, args.workers)), []
    epochs = {str(network): how.epochs for network, how, _ in jobs}
    for name, group in groups.items():
        if not group:
            print(f"  {name}: none is possible on these images, within the limits")
            continue
        row = {"name": name, "architectures": list(dict.fromkeys(map(str, group))), "epochs": epochs[str(group[0])]}
        row["parameters"] = statistics.fmean(parameters_of(network, data) for network in group)
        row |= {"seconds_of_a_step": seconds[row["architectures"][0]]} if name in READY_MADE else {}
        row |= statistics_of("top1", [next(finals) for _ in group])
        which = row["architectures"][0] if len(row["architectures"]) == 1 else "a training each"
        spread = f" ± {100 * row['top1_std']:.2f}" if len(group) > 1 else ""
        accuracy = f"{row['top1_mean']:.2%}{spread} (n = {len(group)})"
        print(f"  {name:<18} {which:<18} {accuracy}   {row['parameters']:,.0f} parameters   {row['epochs']:.3g} epochs")
        rows.append(row)
    return rows


def seconds_of_a_step(network: Architecture | ReadyMade, data: Data, recipe: Recipe, device: str) -> float:
    """What one step of a training takes, alone in a process: the median of three longer trainings less a short one."""
    few = data._replace(held_out=Images(*(tensor[:10] for tensor in data.held_out)))
    _, per_epoch, _ = training_steps(recipe, len(data.train.labels))

    def seconds(steps: int) -> float:
        return workers.run(seconds_of_training, network, replace(recipe, epochs=steps / per_epoch), device)

    with Workers(1, in_shared_memory(few), device=device) as workers:
        time = workers.submit(lambda: statistics.median(seconds(25) - seconds(5) for _ in range(3)) / 20).result()
    return max(time, 1e-6)  # of a clock that was disturbed


def seconds_of_training(data: Data, network: Architecture | ReadyMade, recipe: Recipe, device: str) -> float:
    """Runs in a worker process."""
    return train_child(network, on_device(data, device), recipe, 0).seconds


def parameters_of(network: Architecture | ReadyMade, data: Data) -> int:
    if isinstance(network, Architecture):
        return possible_size(network, data)["parameters"]
    with torch.device("meta"):
        return sum(p.numel() for p in network(tuple(data.train.pixels.shape[1:]), data.num_classes).parameters())


def random_actions(space: SearchSpace, accept: Callable[[Architecture], bool], seed: int) -> list[tuple[int, ...]]:
    """Distinct sequences of actions, uniform among the accepted networks; fewer than ten if those are rare."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for _ in range(100 * RANDOM_NETWORKS):
        draw = [torch.randint(len(choices), (), generator=generator).item() for *_, choices in space.tokens]
        if len(found) < RANDOM_NETWORKS and accept(space.decode(draw)):
            found[tuple(draw)] = None
    return list(found)


def largest(space: SearchSpace, start: Sequence[tuple[int, ...]], size: Callable) -> Architecture:
    """The network with the most parameters that is found by changing one choice at a time, from the largest of some."""

    def parameters(actions: tuple[int, ...]) -> int:
        found = size(space.decode(actions))
        return found["parameters"] if found else 0

    actions, before = max(start, key=parameters), None
    while actions != before:
        before = actions
        for t, (*_, choices) in enumerate(space.tokens):
            actions = max(((*actions[:t], a, *actions[t + 1 :]) for a in range(len(choices))), key=parameters)
    return space.decode(actions)
