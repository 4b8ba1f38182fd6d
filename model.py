"""The search space as plain data, the child networks it describes, and how one child is trained.

architecture = parse_architecture("k5f16p0-k5f32p1")
trained = train_child(architecture, train, validation, num_classes=10, recipe=Recipe(), seed=0)
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Decision(NamedTuple):
    """One token of an architecture and the values it may take."""

    name: str
    choices: tuple[int, ...]


LAYER_DECISIONS = (
    Decision("kernel", (3, 5, 7)),  # pixels, square
    Decision("filters", (8, 16, 32)),
    Decision("padding", (0, 1, 2)),  # pixels on each side
)


@dataclass(frozen=True)
class Layer:
    kernel: int
    filters: int
    padding: int

    def __str__(self) -> str:
        return f"k{self.kernel}f{self.filters}p{self.padding}"


@dataclass(frozen=True)
class Architecture:
    """A network as a value; its text form, such as `k5f16p0-k5f32p1`, is its name everywhere."""

    layers: tuple[Layer, ...]

    def __str__(self) -> str:
        return "-".join(map(str, self.layers))


def parse_architecture(text: str) -> Architecture:
    """Read an architecture's text form; ValueError for a text that no space of this program can write."""
    layers = []
    for part in text.split("-"):
        match = re.fullmatch(r"k([0-9]{1,9})f([0-9]{1,9})p([0-9]{1,9})", part)
        if match is None:
            raise ValueError(f"{text!r} is not an architecture: write one like k5f16p0-k5f32p1")
        layer = Layer(*map(int, match.groups()))
        for decision in LAYER_DECISIONS:
            value = getattr(layer, decision.name)
            if value not in decision.choices:
                choices = ", ".join(map(str, decision.choices))
                raise ValueError(
                    f"{text!r} is outside the search space: {decision.name} {value} is not one of {choices}"
                )
        if str(layer) != part:
            raise ValueError(f"{text!r} is not an architecture: write {part} as {layer}")
        layers.append(layer)
    return Architecture(tuple(layers))


@dataclass(frozen=True)
class SearchSpace:
    """All architectures of `num_layers` layers; the default one is the original system's, 3^6 = 729 networks."""

    num_layers: int = 2

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The decisions in the order in which the controller makes them, T = 3 per layer."""
        return LAYER_DECISIONS * self.num_layers

    def decode(self, actions: Sequence[int]) -> Architecture:
        """The architecture that T choice indices describe."""
        values = [decision.choices[a] for decision, a in zip(self.decisions, actions, strict=True)]
        per_layer = len(LAYER_DECISIONS)
        return Architecture(tuple(Layer(*values[i : i + per_layer]) for i in range(0, len(values), per_layer)))


class Child(nn.Module):
    """The network an architecture describes: [conv, max-pool 2, ReLU] per layer, linear 84, ReLU, linear.

    The pool is left out in the last layer and wherever the map is less than 8 pixels wide. `image_shape` is (C, H, W).
    ValueError if a feature map would shrink below 1x1.
    """

    def __init__(self, architecture: Architecture, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        self.pools = []
        channels, *size = image_shape
        for i, layer in enumerate(architecture.layers):
            size = [pixels + 2 * layer.padding - layer.kernel + 1 for pixels in size]
            if min(size) < 1:
                raise ValueError(f"{architecture}: the feature map of layer {i + 1} shrinks below 1x1")
            self.convs.append(nn.Conv2d(channels, layer.filters, layer.kernel, padding=layer.padding))
            pool = i < len(architecture.layers) - 1 and min(size) >= 8
            self.pools.append(pool)
            if pool:
                size = [pixels // 2 for pixels in size]
            channels = layer.filters
        self.hidden = nn.Linear(channels * size[0] * size[1], 84)
        self.classifier = nn.Linear(84, num_classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of normalised float images (B, C, H, W)."""
        x = images
        for conv, pool in zip(self.convs, self.pools, strict=True):
            x = conv(x)
            if pool:
                x = F.max_pool2d(x, 2)  # before ReLU: the same result, a quarter of the work
            x = F.relu(x)
        x = x.permute(0, 2, 3, 1).flatten(1)  # (B, H * W * C), the order in memory: no copy
        return self.classifier(F.relu(self.hidden(x)))


class LayerSummary(NamedTuple):
    name: str
    output_shape: tuple[int, ...]  # without the batch dimension
    parameters: int
    flops: int  # of one image's forward pass, 2 per multiply-add, convolutions and linear layers


def summarize(child: Child, image_shape: tuple[int, int, int]) -> list[LayerSummary]:
    """Output shape, parameters and forward FLOPs of each layer, read off a real forward pass."""
    rows = []

    def record(layer: nn.Module, _: tuple, output: Tensor) -> None:
        parameters = sum(p.numel() for p in layer.parameters())
        flops = 2 * layer.weight.numel() * (output[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1)
        name = str(layer).replace(", bias=True", "").replace(", stride=(1, 1)", "")
        rows.append(LayerSummary(name, tuple(output.shape[1:]), parameters, flops))

    hooks = [m.register_forward_hook(record) for m in child.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.inference_mode():
        child(torch.zeros(1, *image_shape, device=next(child.parameters()).device))
    for hook in hooks:
        hook.remove()
    return rows


class Images(NamedTuple):
    """Labelled images; the whole set is one tensor in memory."""

    pixels: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64


@dataclass(frozen=True)
class Recipe:
    """How a child is trained. The defaults are the search's; `--mode evaluate` trains longer (see train.py)."""

    epochs: float = 0.6  # passes over the training images: each child sees its own random 33,000 of MNIST's 55,000
    batch_size: int = 64
    lr: float = 0.006  # of Adam, for biases and linear layers; the peak of the one-cycle schedule
    betas: tuple[float, float] = (0.8, 0.95)  # of Adam
    filter_lr: float = 0.03  # of Muon, for the filters of the convolutions, same schedule; 0: Adam trains them too
    momentum: float = 0.9  # of Muon
    warmup: float = 0.2  # share of the steps in which lr rises; it falls to 0 after
    label_smoothing: float = 0.1
    shift: int = 0  # augmentation: images are moved by up to so many pixels in both directions


class TrainedChild(NamedTuple):
    child: Child
    accuracy: float  # top-1 on the held-out images, 0 to 1
    top5_accuracy: float
    parameters: int
    seconds: float  # wall time of training and measuring


def train_child(
    architecture: Architecture,
    train: Images,
    held_out: Images,
    num_classes: int,
    recipe: Recipe,
    seed: int,
    device: str = "cpu",
    images_seen: Tensor | None = None,
) -> TrainedChild:
    """Train one child and measure it on `held_out`: a pure function of its arguments, on one thread on a CPU.

    `images_seen`, a scalar in shared memory, is raised as training goes on, for a progress bar.
    """
    started = time.perf_counter()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        child = Child(architecture, tuple(train.pixels.shape[1:]), num_classes).to(device)
    generator = torch.Generator().manual_seed(seed)
    pixels, labels = train.pixels.to(device), train.labels.to(device)
    filters = {conv.weight for conv in child.convs} if recipe.filter_lr else set()
    others = [p for p in child.parameters() if p not in filters]
    optimizers = [torch.optim.Adam(others, lr=recipe.lr, betas=recipe.betas, fused=True)]
    if filters:
        optimizers.append(Muon(filters, lr=recipe.filter_lr, momentum=recipe.momentum))

    batch_size = min(recipe.batch_size, len(labels))
    steps_per_epoch = len(labels) // batch_size
    num_steps = max(1, round(recipe.epochs * steps_per_epoch))
    for step in range(num_steps):
        if step % steps_per_epoch == 0:
            order = torch.randperm(len(labels), generator=generator).to(device)
        start = step % steps_per_epoch * batch_size
        batch = order[start : start + batch_size]
        images = pixels[batch]
        if recipe.shift:
            images = random_shift(images, recipe.shift, generator)
        loss = F.cross_entropy(child(normalize(images)), labels[batch], label_smoothing=recipe.label_smoothing)
        loss.backward()
        for optimizer in optimizers:
            group = optimizer.param_groups[0]
            group["lr"] = optimizer.defaults["lr"] * one_cycle((step + 0.5) / num_steps, recipe.warmup)
            optimizer.step()
            optimizer.zero_grad()
        if images_seen is not None:
            images_seen += batch_size

    accuracy, top5_accuracy = measure(child, held_out, device)
    parameters = sum(p.numel() for p in child.parameters())
    return TrainedChild(child, accuracy, top5_accuracy, parameters, time.perf_counter() - started)


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised steps (Jordan et al. 2024), here for filters (out, in, height, width).

    torch.optim.Muon takes matrices only, and iterates in bfloat16.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, momentum: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["momentum"])
                step = orthogonalize(p.grad.lerp(average, group["momentum"]).flatten(1))  # Nesterov's look ahead
                height, width = step.shape
                p.add_(step.view(p.shape), alpha=-group["lr"] * max(1, height / width) ** 0.5)


def orthogonalize(matrix: Tensor, iterations: int = 3) -> Tensor:
    """Push a matrix's singular values towards 1 by Newton-Schulz iteration: x <- (a + b xx' + c (xx')^2) x.

    The polynomials are multiplied up on the small side, so that the large one is touched twice only.
    """
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    gram = x @ x.T
    product = torch.eye(len(x), dtype=x.dtype, device=x.device)
    for _ in range(iterations):
        polynomial = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        polynomial.diagonal().add_(3.4445)
        product = polynomial @ product
        gram = polynomial @ gram @ polynomial
    x = product @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def one_cycle(progress: float, warmup: float) -> float:
    """Share of the peak learning rate at `progress` in [0, 1): linear up during `warmup`, linear down after."""
    return progress / warmup if progress < warmup else (1 - progress) / (1 - warmup)


def normalize(pixels: Tensor) -> Tensor:
    """uint8 pixels (B, C, H, W) as channels-last floats from -1 to 1: mean 0.5, std 0.5 as in the original system."""
    return pixels.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1)


def random_shift(pixels: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Move each image (B, C, H, W) by up to `shift` pixels in both directions, filling in zeros."""
    n, _, height, width = pixels.shape
    dy, dx = torch.randint(0, 2 * shift + 1, (2, n, 1), generator=generator).to(pixels.device)
    rows, columns = dy + torch.arange(height, device=pixels.device), dx + torch.arange(width, device=pixels.device)
    padded = F.pad(pixels, [shift] * 4).permute(0, 2, 3, 1)  # (B, H + 2s, W + 2s, C)
    image = torch.arange(n, device=pixels.device)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.inference_mode()
def measure(child: Child, images: Images, device: str = "cpu") -> tuple[float, float]:
    """Top-1 and top-5 accuracy of a child, 0 to 1."""
    logits = torch.cat([child(normalize(pixels.to(device))) for pixels in images.pixels.split(500)])
    labels = images.labels.to(device)
    return top_k_accuracy(logits, labels, 1), top_k_accuracy(logits, labels, 5)


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int) -> float:
    """Share of rows of `logits` (N, classes) whose label (N,) is among the k largest."""
    best = logits.topk(min(k, logits.shape[1])).indices  # (N, k)
    return (best == labels[:, None]).any(1).sum().item() / len(labels)
