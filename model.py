"""The child networks that architectures describe, and how one child is trained.

architecture = parse_architecture("k5f16p0-k5f32p1")
trained = train_child(architecture, data, Recipe(), seed=0)
"""

import functools
import math
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        self.architecture, self.convs, self.norms = architecture, nn.ModuleList(), nn.ModuleList()
        self.pooled: list[set[int]] = []  # by each layer: the maps that it pools, its own and earlier ones
        self.shapes = []  # (C, H, W) of each convolution's output
        maps = [torch.zeros(1, *image_shape)]  # of the image and of each layer, to see their shapes
        for number, layer in enumerate(architecture.layers, start=1):
            x = concatenate([maps[j] for j in layer.inputs])
            conv = nn.Conv2d(x.shape[1], layer.filters, **layer.conv, bias=False)
            room = [x.shape[2 + a] + 2 * conv.padding[a] - conv.dilation[a] * (conv.kernel_size[a] - 1) for a in (0, 1)]
            if min(room) <= 0:
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
            maps[number] = F.relu(norm(maps[number]))  # after its pooling: a quarter of the work
        x = concatenate([maps[j] for j in self.architecture.outputs])
        if self.hidden is None:
            return self.classifier(x.mean((2, 3)))
        x = x.permute(0, 2, 3, 1).flatten(1)  # (B, H * W * C), the order in memory: no copy
        return self.classifier(F.relu(self.hidden(x)))


def concatenate(maps: list[Tensor]) -> Tensor:
    """Feature maps (B, C_i, H_i, W_i) joined in depth, smaller ones padded with zeros below and to the right (§3.3)."""
    if len(maps) == 1:
        return maps[0]
    height, width = (max(x.shape[axis] for x in maps) for axis in (2, 3))
    smaller = [x.shape[2:] != (height, width) for x in maps]
    pads = [(0, width - x.shape[3], 0, height - x.shape[2]) for x in maps]
    return torch.cat([F.pad(x, pad) if small else x for x, pad, small in zip(maps, pads, smaller, strict=True)], 1)


class LayerSummary(NamedTuple):
    name: str
    output_shape: tuple[int, ...]  # without the batch dimension
    parameters: int
    flops: int  # of one image's forward pass, 2 per multiply-add, convolutions and linear layers


def summarize(child: Child) -> list[LayerSummary]:
    """Output shape, parameters and forward FLOPs of each layer."""
    linear = [layer for layer in (child.hidden, child.classifier) if layer is not None]
    shapes, rows = child.shapes + [(layer.out_features,) for layer in linear], []
    for layer, norm, shape in zip_longest([*child.convs, *linear], child.norms, shapes):
        name = re.sub(r", bias=\w+|, stride=\(1, 1\)", "", str(layer)) + (", batch norm" if norm else "")
        parameters = sum(p.numel() for part in (layer, norm) if part for p in part.parameters())
        rows.append(LayerSummary(name, shape, parameters, 2 * layer.weight.numel() * math.prod(shape[1:])))
    return rows


def possible_size(architecture: Architecture, data: Data) -> dict[str, int] | None:
    """Parameters, and FLOPs of one image's forward pass; None where feature maps would shrink to nothing."""
    try:
        with torch.device("meta"):  # shapes only
            layers = summarize(Child(architecture, tuple(data.train.pixels.shape[1:]), data.num_classes))
    except ImpossibleNetwork:
        return None
    return {name: sum(getattr(layer, name) for layer in layers) for name in ("parameters", "flops")}


@dataclass(frozen=True)
class Recipe:
    """How a child is trained. The defaults are the search's; `--mode evaluate` trains longer (see train.py)."""

    epochs: float = 0.2  # passes over the training images: each child sees its own random 11,000 of MNIST's 55,000
    batch_size: int = 64
    optimizer: str = "muon"  # for the filters of the convolutions, with Adam for the rest; or "adam" or "sgd" for all
    lr: float = 0.006  # of Adam or SGD
    filter_lr: float = 0.03  # of Muon
    betas: tuple[float, float] = (0.8, 0.95)  # of Adam
    momentum: float = 0.9  # of Muon or SGD, both with Nesterov's look-ahead
    weight_decay: float = 0.0  # of SGD
    schedule: str = "one_cycle"  # of all learning rates, which are its peak; or "constant"
    warmup: float = 0.2  # share of the steps in which the one cycle rises; it falls to 0 after
    label_smoothing: float = 0.1
    shift: int = 0  # augmentation: images are moved by up to so many pixels in both directions
    flip: bool = False  # augmentation: images are mirrored with probability 1/2
    best_of: int = 1  # the accuracy is the best one after each of the last so many epochs
    precision: str = "float32"  # of activations; or "bfloat16": mixed precision, where the processor is faster with it


PAPER_RECIPE = Recipe(  # §4.1; the batch size is not in the paper
    epochs=50, batch_size=128, optimizer="sgd", lr=0.1, weight_decay=1e-4, schedule="constant", label_smoothing=0,
    shift=4, flip=True, best_of=5,
)  # fmt: skip
LEAST_STEPS = 300  # of a training on the reader's own images


class TrainedChild(NamedTuple):
    child: Child
    accuracy: float  # top-1 on the held-out images, 0 to 1
    top5_accuracy: float
    seconds: float  # wall time of training and measuring


def train_child(
    architecture: Architecture, data: Data, recipe: Recipe, seed: int, progress: Tensor | None = None
) -> TrainedChild:
    """Train one child where the images are, and measure it on those held out: a pure function, on one thread on a CPU.

    In the place of `architecture` may be a function from the images' shape and the number of classes to a network.
    `progress`, two numbers in shared memory, is for a progress bar: the images trained on so far, and the accuracy on
    the latest ones, which is read every 50 steps because a GPU would wait for it.
    """
    started = time.perf_counter()
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True  # on a GPU: others of its algorithms add up in any order
    pixels, labels = data.train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        make = architecture if callable(architecture) else functools.partial(Child, architecture)
        child = make(tuple(pixels.shape[1:]), data.num_classes).to(pixels.device)
    generator = torch.Generator().manual_seed(seed)
    optimizers = make_optimizers(child, recipe)
    running_accuracy = torch.full((), 1 / data.num_classes, device=pixels.device)

    def update(batch: Tensor, offsets: Tensor, mirrored: Tensor) -> None:
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

    if on_gpu := pixels.is_cuda:
        update = Graphed(update)
    batch_size, steps_per_epoch, num_steps = training_steps(recipe, len(labels))
    measured = []
    for step in range(num_steps):
        number = step % steps_per_epoch
        if number == 0:  # anew in each epoch, and at once: a GPU would wait for what is drawn on the CPU in each step
            order = torch.randperm(len(labels), generator=generator).to(pixels.device)
            drawn = draw_augmentation(recipe, min(steps_per_epoch, num_steps - step), batch_size, generator)
            offsets, mirrored = (tensor.to(pixels.device) for tensor in drawn)
        share = one_cycle((step + 0.5) / num_steps, recipe.warmup) if recipe.schedule == "one_cycle" else 1
        for optimizer in optimizers:
            rate, group = optimizer.defaults["lr"] * share, optimizer.param_groups[0]
            group["lr"] = group["lr"].fill_(rate) if on_gpu else rate
        update(order[number * batch_size : (number + 1) * batch_size], offsets[number], mirrored[number])

        if progress is not None:
            progress[0] = (step + 1) * batch_size  # no sum: a training whose process has died begins anew
            if step % 50 == 49:
                progress[1] = running_accuracy
        epochs_left, rest = divmod(num_steps - 1 - step, steps_per_epoch)
        if rest == 0 and epochs_left < recipe.best_of:
            with mixed_precision(recipe, pixels.device):
                measured.append(measure(child, data.held_out))

    accuracy, top5_accuracy = max(measured)
    return TrainedChild(child.eval(), accuracy, top5_accuracy, time.perf_counter() - started)


def mixed_precision(recipe: Recipe, device: torch.device) -> AbstractContextManager:
    """A context in which layers compute in bfloat16, if that is the recipe's precision; weights stay in float32."""
    if recipe.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)  # a CUDA graph must not keep the cache


class Graphed:
    """A function of tensors as a CUDA graph: from the fourth call on all its kernels, some hundred, start at once.

    The first three run as ever, and load what is needed. What it does may depend neither on a tensor's content nor on a
    Python number that changes. One at a time in a process, as all are recorded on the same stream.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self.function, self.calls, self.graph = function, 0, torch.cuda.CUDAGraph()

    def __call__(self, *inputs: Tensor) -> None:
        self.calls += 1
        if self.calls <= 3:
            stream, ahead = capture_stream(), torch.cuda.current_stream()
            stream.wait_stream(ahead)
            with torch.cuda.stream(stream):
                self.function(*inputs)
            ahead.wait_stream(stream)
            return
        if self.calls == 4:
            self.inputs = [tensor.clone() for tensor in inputs]
            with torch.cuda.graph(self.graph, stream=capture_stream()):
                self.function(*self.inputs)
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()


@functools.cache
def capture_stream() -> torch.cuda.Stream:
    """One for all graphs of a process: PyTorch keeps memory for each stream."""
    return torch.cuda.Stream()


def training_steps(recipe: Recipe, num_images: int) -> tuple[int, int, int]:
    """Images of a step, steps of an epoch and steps of a training; what is left of an epoch is not used."""
    batch_size = min(recipe.batch_size, num_images)
    steps_per_epoch = num_images // batch_size
    return batch_size, steps_per_epoch, max(1, round(recipe.epochs * steps_per_epoch))


def long_enough(recipe: Recipe, num_images: int) -> Recipe:
    """The recipe with at least LEAST_STEPS steps, however few images there are."""
    return replace(recipe, epochs=max(recipe.epochs, LEAST_STEPS / training_steps(recipe, num_images)[1]))


@functools.lru_cache(maxsize=1)
def on_device(data: Data, device: str) -> Data:
    """The same images on a device; a GPU keeps those of a worker process from child to child."""
    train, held_out = (Images(*(tensor.to(device) for tensor in images)) for images in data[:2])
    return data._replace(train=train, held_out=held_out)


def make_optimizers(child: Child, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """SGD or Adam for everything, or Muon for the filters of the convolutions and Adam for the rest."""
    on_gpu = next(child.parameters()).is_cuda
    if recipe.optimizer == "sgd":
        settings = {"lr": recipe.lr, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
        optimizers = [torch.optim.SGD(child.parameters(), nesterov=True, fused=on_gpu, **settings)]
    else:
        filters = [conv.weight for conv in child.convs] if recipe.optimizer == "muon" else []
        others = [p for p in child.parameters() if not any(p is f for f in filters)]
        optimizers = [torch.optim.Adam(others, lr=recipe.lr, betas=recipe.betas, fused=True, capturable=on_gpu)]
        optimizers += [Muon(filters, lr=recipe.filter_lr, momentum=recipe.momentum)] if filters else []
    for optimizer in optimizers if on_gpu else ():
        optimizer.param_groups[0]["lr"] = torch.zeros((), device="cuda")  # a CUDA graph reads it there in each step
    return optimizers


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised steps (Jordan et al. 2024) for filters; torch.optim.Muon: matrices, in bfloat16."""

    def __init__(self, filters: Sequence[nn.Parameter], lr: float, momentum: float) -> None:
        super().__init__(filters, {"lr": lr, "momentum": momentum})
        self.averages = [torch.zeros_like(p) for p in filters]

    @torch.no_grad()
    def step(self) -> None:
        group = self.param_groups[0]
        for p, average in zip(group["params"], self.averages, strict=True):
            average.lerp_(p.grad, 1 - group["momentum"])
            step = orthogonalize(p.grad.lerp(average, group["momentum"]).flatten(1))  # Nesterov's look ahead
            height, width = step.shape  # filters, and the numbers of each
            scale = -(max(1, height / width) ** 0.5)
            if p.is_cuda:
                p.addcmul_(step.view(p.shape), group["lr"], value=scale)
            else:
                p.add_(step.view(p.shape), alpha=group["lr"] * scale)


def orthogonalize(matrix: Tensor, iterations: int = 3) -> Tensor:
    """Push a matrix's singular values towards 1 by Newton-Schulz iteration: x <- (a + b xx' + c (xx')^2) x."""
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    gram, product = x @ x.T, None
    for left in reversed(range(iterations)):  # multiply the polynomials up, on the small side: cheaper
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


def draw_augmentation(recipe: Recipe, num_steps: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """An epoch's offsets (steps, 2, B, 1) of `augment`, 0 to 2 `shift`, and whom it mirrors (steps, B)."""
    high, shape, flips = 2 * recipe.shift + 1, (2 if recipe.shift else 0, batch_size, 1), recipe.flip * batch_size
    steps = [  # the generator's numbers are used step by step, whatever is drawn
        (torch.randint(high, shape, generator=generator), torch.rand(flips, generator=generator) < 0.5)
        for _ in range(num_steps)
    ]
    return list(map(torch.stack, zip(*steps, strict=True)))


def augment(pixels: Tensor, recipe: Recipe, offsets: Tensor, mirrored: Tensor) -> Tensor:
    """Move images (B, C, H, W) by offsets (2, B, 1), less `shift`, down and right; mirror some (B,) left to right."""
    n, _, height, width = pixels.shape
    if recipe.shift:
        down, right = offsets[:, :, 0]  # (B,)
        padded = F.pad(pixels, [recipe.shift] * 4)  # with zeros
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2s + 1, 2s + 1, H, W)
        pixels = windows[torch.arange(n, device=pixels.device), :, down, right]
    return torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels) if recipe.flip else pixels


class FromPixels(nn.Module):
    """Logits (B, classes) of uint8 pixels (B, C, H, W), or the mean of theirs and their mirror images'."""

    def __init__(self, child: nn.Module, both_sides: bool = False) -> None:
        super().__init__()
        self.child, self.both_sides = child, both_sides

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
