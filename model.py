"""The child networks that architectures describe, and how one child is trained.

architecture = parse_architecture("k5f16p0-k5f32p1")
trained = train_child(architecture, data, Recipe(), seed=0)
"""

import functools
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from datasets import Data, Images
from search_space import Architecture

MIN_POOLED = 8  # pixels: smaller maps are not pooled


class ImpossibleNetwork(ValueError):
    """An architecture whose feature maps would shrink below 1x1 on images of this size."""


class Child(nn.Module):
    """The network an architecture describes; `image_shape` is (C, H, W).

    Each layer is [conv, max-pool 2?, batch norm, ReLU] on its inputs, joined in depth. Where a layer pools, all earlier
    maps that are still needed are pooled with it, so that a skip connection brings no larger map back; no pooling in
    the last layer, nor of a map less than 8 pixels wide or high. Then the outputs that no layer takes are joined, and
    [linear, ReLU, linear] or global average pooling and linear follow. ImpossibleNetwork if a map would shrink below
    1x1.
    """

    def __init__(self, architecture: Architecture, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.architecture = architecture
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        self.pooled: list[set[int]] = []  # for each layer the numbers of the maps that it pools, 0 the image
        self.shapes = []  # (C, H, W) of each convolution's output
        maps = [torch.zeros(1, *image_shape)]  # the image and each layer's output, zeros that show the shapes
        for number, layer in enumerate(architecture.layers, start=1):
            x = concatenate([maps[j] for j in layer.inputs])
            conv = nn.Conv2d(x.shape[1], layer.filters, **layer.conv, bias=False)
            if not has_room(conv, x):
                raise ImpossibleNetwork(f"{architecture}: the feature map of layer {number} shrinks below 1x1")
            self.convs.append(conv)
            self.norms.append(nn.BatchNorm2d(layer.filters))
            with torch.no_grad():
                x = conv(x)
            self.shapes.append(tuple(x.shape[1:]))
            maps.append(x)
            pools = layer.pool and number < len(architecture.layers)
            needed = architecture.needed_after(number) if pools else ()
            self.pooled.append({j for j in needed if min(maps[j].shape[2:]) >= MIN_POOLED})
            for j in self.pooled[-1]:
                maps[j] = F.max_pool2d(maps[j], 2)
        x = concatenate([maps[j] for j in architecture.outputs])
        self.hidden = nn.Linear(x[0].numel(), architecture.hidden) if architecture.hidden else None
        self.classifier = nn.Linear(architecture.hidden or x.shape[1], num_classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of normalised float images (B, C, H, W)."""
        maps = [images]
        layers = zip(self.architecture.layers, self.convs, self.norms, self.pooled, strict=True)
        for number, (layer, conv, norm, pooled) in enumerate(layers, start=1):
            maps.append(conv(concatenate([maps[j] for j in layer.inputs])))
            for j in pooled:
                maps[j] = F.max_pool2d(maps[j], 2)
            maps[number] = F.relu(norm(maps[number]))  # pooling comes first, because it leaves a quarter of the work
        x = concatenate([maps[j] for j in self.architecture.outputs])
        if self.hidden is None:
            return self.classifier(x.mean((2, 3)))
        x = x.permute(0, 2, 3, 1).flatten(1)  # (B, H * W * C), the order in memory, so that nothing is copied
        return self.classifier(F.relu(self.hidden(x)))


def has_room(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether a filter fits on the padded map (B, C, H, W), so that the output is at least 1x1."""
    for axis, size in enumerate(x.shape[2:]):
        if size + 2 * conv.padding[axis] <= conv.dilation[axis] * (conv.kernel_size[axis] - 1):
            return False
    return True


def concatenate(maps: list[Tensor]) -> Tensor:
    """Feature maps (B, C_i, H_i, W_i) joined in depth, smaller ones padded with zeros below and to the right (§3.3)."""
    if len(maps) == 1:
        return maps[0]
    height = max(x.shape[2] for x in maps)
    width = max(x.shape[3] for x in maps)
    padded = []
    for x in maps:
        below, right = height - x.shape[2], width - x.shape[3]
        padded.append(F.pad(x, (0, right, 0, below)) if below or right else x)
    return torch.cat(padded, 1)


class LayerSummary(NamedTuple):
    name: str
    output_shape: tuple[int, ...]  # the batch dimension is left out
    parameters: int
    flops: int  # floating-point operations for one image: 2 per multiply-add of convolutions and linear layers


def summarize(child: Child) -> list[LayerSummary]:
    """Output shape, parameters and forward FLOPs of each layer."""
    linear = [layer for layer in (child.hidden, child.classifier) if layer is not None]
    shapes = child.shapes + [(layer.out_features,) for layer in linear]
    rows = []
    for layer, norm, shape in zip_longest([*child.convs, *linear], child.norms, shapes):
        name = re.sub(r", bias=\w+|, stride=\(1, 1\)", "", str(layer)) + (", batch norm" if norm else "")
        parameters = sum(p.numel() for part in (layer, norm) if part for p in part.parameters())
        rows.append(LayerSummary(name, shape, parameters, 2 * layer.weight.numel() * math.prod(shape[1:])))
    return rows


def size_or_none(architecture: Architecture, data: Data) -> dict[str, int] | None:
    """Parameters, and FLOPs of one image's forward pass; None where feature maps would shrink to nothing."""
    try:
        with torch.device("meta"):  # tensors have shapes there, but no content
            layers = summarize(Child(architecture, tuple(data.train.pixels.shape[1:]), data.num_classes))
    except ImpossibleNetwork:
        return None
    return {name: sum(getattr(layer, name) for layer in layers) for name in ("parameters", "flops")}


@dataclass(frozen=True)
class Recipe:
    """How a child is trained. The defaults are the search's; `--mode evaluate` trains longer (see train.py)."""

    epochs: float = 0.2  # passes over the training images: each child sees its own random 11,000 of MNIST's 55,000
    batch_size: int = 64
    optimizer: str = "muon"  # Muon for the convolutions' filters with Adam for the rest; or "adam" or "sgd" for all
    lr: float = 0.006  # learning rate of Adam or SGD
    filter_lr: float = 0.03  # learning rate of Muon
    betas: tuple[float, float] = (0.8, 0.95)  # decay rates of Adam's two averages
    momentum: float = 0.9  # momentum of Muon or SGD, both with Nesterov's look-ahead
    weight_decay: float = 0.0  # weight decay of SGD
    schedule: str = "one_cycle"  # learning rates rise to those above and fall to 0; or "constant"
    warmup: float = 0.2  # share of the steps in which the one cycle rises
    label_smoothing: float = 0.1
    shift: int = 0  # augmentation: images are moved by up to this number of pixels in both directions
    flip: bool = False  # augmentation: images are mirrored with probability 1/2
    best_of: int = 1  # the accuracy is the best of those after each of the last `best_of` epochs
    precision: str = "float32"  # activations are in float32, or in "bfloat16" (mixed precision, sometimes faster)


PAPER_RECIPE = Recipe(  # §4.1; the batch size is not in the paper
    epochs=50, batch_size=128, optimizer="sgd", lr=0.1, weight_decay=1e-4, schedule="constant", label_smoothing=0,
    shift=4, flip=True, best_of=5,
)  # fmt: skip
MIN_STEPS = 300  # a training on the reader's own images is at least as long
NetworkMaker = Callable[[tuple[int, int, int], int], nn.Module]  # takes an image's (C, H, W) and the number of classes


class TrainedChild(NamedTuple):
    child: nn.Module  # a Child, or what a NetworkMaker made
    accuracy: float  # top-1 on the held-out images, 0 to 1
    top5_accuracy: float
    seconds: float  # wall time of training and measuring


def train_child(
    network: Architecture | NetworkMaker, data: Data, recipe: Recipe, seed: int, progress: Tensor | None = None
) -> TrainedChild:
    """Train a new network on the device of the images, and measure it on those held out.

    The result depends on the first four arguments and the kind of processor only. `progress`, two numbers in shared
    memory for a progress bar, is written to: the images trained on so far, and the accuracy on the latest ones.
    """
    started = time.perf_counter()
    make_repeatable()
    pixels, labels = data.train
    child = make_network(network, data, seed)
    optimizers = make_optimizers(child, recipe)
    running_accuracy = torch.full((), 1 / data.num_classes, device=pixels.device)

    def train_on(batch: Tensor, offsets: Tensor, mirrored: Tensor) -> None:
        images = augment(pixels[batch], recipe, offsets, mirrored)
        with mixed_precision(recipe, pixels.device):
            logits = child(normalize(images))
        loss = F.cross_entropy(logits.float(), labels[batch], label_smoothing=recipe.label_smoothing)
        loss.backward()
        if progress is not None:
            running_accuracy.lerp_((logits.argmax(1) == labels[batch]).float().mean(), 0.02)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    if pixels.is_cuda:
        train_on = Graphed(train_on)
    batch_size, steps_per_epoch, num_steps = training_steps(recipe, len(labels))
    accuracies = []  # (top-1, top-5) after each of the last epochs
    for step, drawn in enumerate(draw_batches(recipe, len(labels), seed, pixels.device)):
        set_learning_rates(optimizers, recipe, (step + 0.5) / num_steps)
        train_on(*drawn)

        if progress is not None:
            progress[0] = (step + 1) * batch_size  # not added up: a training begins anew if its process dies
            if step % 50 == 49:  # reading it in every step would make a GPU wait
                progress[1] = running_accuracy
        steps_left = num_steps - 1 - step
        ends_epoch = steps_left % steps_per_epoch == 0  # counted from the last step
        if ends_epoch and steps_left < recipe.best_of * steps_per_epoch:
            with mixed_precision(recipe, pixels.device):
                accuracies.append(measure(child, data.held_out))

    accuracy, top5_accuracy = max(accuracies)  # the best top-1, with its top-5
    return TrainedChild(child.eval(), accuracy, top5_accuracy, time.perf_counter() - started)


def make_repeatable() -> None:
    """Set PyTorch, for the whole process, so that a training gives the same numbers each time."""
    torch.set_num_threads(1)  # the number of threads decides in which order a CPU adds up
    torch.backends.cudnn.deterministic = True  # some algorithms of a GPU add up in any order


def make_network(network: Architecture | NetworkMaker, data: Data, seed: int) -> nn.Module:
    """A network for these images, on their device, with random weights from `seed`; ImpossibleNetwork as in `Child`."""
    make = functools.partial(Child, network) if isinstance(network, Architecture) else network
    with torch.random.fork_rng(devices=[]):  # the random state of the caller stays as it is
        torch.manual_seed(seed)
        return make(tuple(data.train.pixels.shape[1:]), data.num_classes).to(data.train.pixels.device)


def draw_batches(recipe: Recipe, num_images: int, seed: int, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    """For each step the numbers of its images (B,), and the offsets (2, B) and flips (B,) that `augment` takes.

    They are drawn on the CPU and moved to the device an epoch at a time: a GPU would have to wait in each step.
    """
    generator = Generator().manual_seed(seed)
    batch_size, steps_per_epoch, steps_left = training_steps(recipe, num_images)
    while steps_left > 0:
        num_steps = min(steps_per_epoch, steps_left)
        order = torch.randperm(num_images, generator=generator).to(device)
        offsets, mirrored = draw_augmentation(recipe, num_steps, batch_size, generator)
        # strict=False: images beyond these steps are left out
        yield from zip(order.split(batch_size), offsets.to(device), mirrored.to(device), strict=False)
        steps_left -= num_steps


def set_learning_rates(optimizers: Sequence[torch.optim.Optimizer], recipe: Recipe, share_done: float) -> None:
    """Give each optimizer its learning rate where `share_done` of the training, 0 to 1, is over."""
    share = one_cycle(share_done, recipe.warmup) if recipe.schedule == "one_cycle" else 1
    for optimizer in optimizers:
        group = optimizer.param_groups[0]
        rate = optimizer.defaults["lr"] * share
        if isinstance(group["lr"], Tensor):  # it is one on a GPU, see `make_optimizers`
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def mixed_precision(recipe: Recipe, device: torch.device) -> AbstractContextManager:
    """A context in which layers compute in bfloat16, if that is the recipe's precision; weights stay in float32."""
    if recipe.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)  # a CUDA graph must not keep the cache


class Graphed:
    """A function of tensors that a GPU repeats as a CUDA graph, started by one call instead of one a kernel.

    The first three calls run normally, because libraries load and prepare themselves in them. The fourth records all
    that the GPU is to do, some hundred kernels. It and all later ones copy their inputs to where the recorded kernels
    read them, and replay the recording. Python code doesn't run again: what the function does may depend neither on a
    tensor's content nor on a Python number that changes. A process may use one at a time, as they share a stream.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self.graph = torch.cuda.CUDAGraph()
        self.calls = 0

    def __call__(self, *inputs: Tensor) -> None:
        self.calls += 1
        if self.calls <= 3:
            stream = capture_stream()
            current = torch.cuda.current_stream()
            stream.wait_stream(current)  # the inputs are ready before the function starts
            with torch.cuda.stream(stream):
                self.function(*inputs)
            current.wait_stream(stream)  # and its results before anything else does
            return
        if self.calls == 4:  # recording runs nothing
            self.inputs = [tensor.clone() for tensor in inputs]
            with torch.cuda.graph(self.graph, stream=capture_stream()):
                self.function(*self.inputs)
        for read, given in zip(self.inputs, inputs, strict=True):
            read.copy_(given)
        self.graph.replay()


@functools.cache
def capture_stream() -> torch.cuda.Stream:
    """The stream of all graphs of a process; one only, because PyTorch keeps memory for each stream."""
    return torch.cuda.Stream()


def training_steps(recipe: Recipe, num_images: int) -> tuple[int, int, int]:
    """Images of a step, steps of an epoch, and steps of a training; an epoch leaves out images that fill no step."""
    batch_size = min(recipe.batch_size, num_images)
    steps_per_epoch = num_images // batch_size
    return batch_size, steps_per_epoch, max(1, round(recipe.epochs * steps_per_epoch))


def with_min_steps(recipe: Recipe, num_images: int) -> Recipe:
    """The recipe with at least MIN_STEPS steps, however few images there are."""
    _, steps_per_epoch, _ = training_steps(recipe, num_images)
    return replace(recipe, epochs=max(recipe.epochs, MIN_STEPS / steps_per_epoch))


@functools.lru_cache(maxsize=1)
def on_device(data: Data, device: str) -> Data:
    """The same images on a device, where the latest are kept: a worker process moves them to its GPU once."""
    train = Images(data.train.pixels.to(device), data.train.labels.to(device))
    held_out = Images(data.held_out.pixels.to(device), data.held_out.labels.to(device))
    return data._replace(train=train, held_out=held_out)


def make_optimizers(child: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """SGD or Adam for everything, or Adam for everything but the filters of a Child's convolutions, and Muon for those.

    On a GPU the learning rate is a tensor there: a CUDA graph reads it in each step.
    """
    on_gpu = next(child.parameters()).is_cuda
    if recipe.optimizer == "sgd":
        settings = {"lr": recipe.lr, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
        optimizers = [torch.optim.SGD(child.parameters(), nesterov=True, fused=on_gpu, **settings)]
    else:
        filters = [conv.weight for conv in child.convs] if recipe.optimizer == "muon" else []
        others = [p for p in child.parameters() if not any(p is f for f in filters)]
        optimizers = [torch.optim.Adam(others, lr=recipe.lr, betas=recipe.betas, fused=True, capturable=on_gpu)]
        if filters:
            optimizers.append(Muon(filters, lr=recipe.filter_lr, momentum=recipe.momentum))
    if on_gpu:
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = torch.zeros((), device="cuda")
    return optimizers


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised steps (Jordan et al. 2024), for filters; torch.optim.Muon is for matrices only."""

    def __init__(self, filters: Sequence[nn.Parameter], lr: float, momentum: float) -> None:
        super().__init__(filters, {"lr": lr, "momentum": momentum})
        self.averages = [torch.zeros_like(p) for p in filters]

    @torch.no_grad()
    def step(self) -> None:
        group = self.param_groups[0]
        for p, average in zip(group["params"], self.averages, strict=True):
            average.lerp_(p.grad, 1 - group["momentum"])
            ahead = p.grad.lerp(average, group["momentum"])  # Nesterov's look-ahead
            step = orthogonalize(ahead.flatten(1))
            height, width = step.shape  # the number of filters, and of weights in each
            scale = -(max(1, height / width) ** 0.5)
            if p.is_cuda:
                p.addcmul_(step.view(p.shape), group["lr"], value=scale)
            else:
                p.add_(step.view(p.shape), alpha=group["lr"] * scale)


def orthogonalize(matrix: Tensor, iterations: int = 3) -> Tensor:
    """Push a matrix's singular values towards 1 by Newton-Schulz iteration: x <- (a + b xx' + c (xx')^2) x."""
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    gram = x @ x.T
    product = None
    for left in reversed(range(iterations)):  # the polynomials are multiplied first: they are smaller than x
        polynomial = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        polynomial.diagonal().add_(3.4445)
        product = polynomial if product is None else polynomial @ product
        gram = polynomial @ gram @ polynomial if left else gram
    x = product @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def one_cycle(progress: float, warmup: float) -> float:
    """Share of the peak learning rate at `progress` in [0, 1): linear up during `warmup`, linear down after."""
    return progress / warmup if progress < warmup else (1 - progress) / (1 - warmup)


def normalize(pixels: Tensor) -> Tensor:
    """uint8 pixels (B, C, H, W) as channels-last floats from -1 to 1: mean 0.5, std 0.5."""
    return pixels.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1)


def draw_augmentation(recipe: Recipe, num_steps: int, batch_size: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """The random numbers of `augment` for an epoch: offsets (steps, 2, B) from 0 to 2 `shift`, and flips (steps, B).

    What the recipe doesn't use is empty. Each step draws its offsets, then its flips: another order would give other
    numbers from the same generator, and so other trainings.
    """
    offsets, mirrored = [], []
    for _ in range(num_steps):
        offsets.append(torch.randint(2 * recipe.shift + 1, (2 if recipe.shift else 0, batch_size), generator=generator))
        mirrored.append(torch.rand(batch_size if recipe.flip else 0, generator=generator) < 0.5)
    return torch.stack(offsets), torch.stack(mirrored)


def augment(pixels: Tensor, recipe: Recipe, offsets: Tensor, mirrored: Tensor) -> Tensor:
    """Move images (B, C, H, W) down and right by their offsets (2, B), less `shift`; mirror those `mirrored` (B,)."""
    n, _, height, width = pixels.shape
    if recipe.shift:
        down, right = offsets  # (B,), (B,)
        padded = F.pad(pixels, [recipe.shift] * 4)  # zeros surround each image
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2s + 1, 2s + 1, H, W) at every offset
        pixels = windows[torch.arange(n, device=pixels.device), :, down, right]
    if recipe.flip:
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
    return pixels


class FromPixels(nn.Module):
    """Logits (B, classes) of uint8 pixels (B, C, H, W); of `both_sides` the mean over an image and its mirror image."""

    def __init__(self, child: nn.Module, both_sides: bool = False) -> None:
        super().__init__()
        self.child = child
        self.both_sides = both_sides

    def forward(self, pixels: Tensor) -> Tensor:
        logits = self.child(normalize(pixels))
        return (logits + self.child(normalize(pixels.flip(3)))) / 2 if self.both_sides else logits


@torch.inference_mode()
def measure(child: Child, images: Images, both_sides: bool = False) -> tuple[float, float]:
    """Top-1 and top-5 accuracy of a child, 0 to 1, with batch norm's running statistics."""
    network = FromPixels(child, both_sides).eval()
    logits = torch.cat([network(pixels) for pixels in images.pixels.split(500)])
    child.train()
    return top_k_accuracy(logits, images.labels, 1), top_k_accuracy(logits, images.labels, 5)


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int) -> float:
    """Share of rows of `logits` (N, classes) whose label (N,) is among the k largest."""
    best = logits.topk(min(k, logits.shape[1])).indices  # (N, k)
    return (best == labels[:, None]).any(1).sum().item() / len(labels)
