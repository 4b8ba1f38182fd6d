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


ORIGINAL = (  # one layer of the original system
    Decision("kernel", (3, 5, 7)),  # pixels, square
    Decision("filters", (8, 16, 32)),
    Decision("padding", (0, 1, 2)),  # pixels on each side
)
SIZES = (Decision("height", (1, 3, 5, 7)), Decision("width", (1, 3, 5, 7)))  # one layer of the paper (§4.1)
STRIDES = (Decision("stride_height", (1, 2, 3)), Decision("stride_width", (1, 2, 3)))
FILTERS = (Decision("filters", (24, 36, 48, 64)),)
ANCHOR_POINT = Decision("anchor", ())  # which of the earlier layers are inputs of this one (§3.3)


@dataclass(frozen=True)
class Layer:
    """A convolution: `k5f16p0` in the original space, such as `c3x5f36s2x1i1.2` in the paper's."""

    height: int
    width: int
    filters: int
    padding: int | None = None  # pixels on each side; None, in the paper's space: half the filter, which keeps the size
    stride: tuple[int, int] = (1, 1)
    inputs: tuple[int, ...] = ()  # the paper's space: numbers of earlier layers, from 1; none means the image

    def __str__(self) -> str:
        if self.padding is not None:
            return f"k{self.height}f{self.filters}p{self.padding}"
        stride = "" if self.stride == (1, 1) else "s{}x{}".format(*self.stride)
        inputs = "i" + ".".join(map(str, self.inputs)) if self.inputs else ""
        return f"c{self.height}x{self.width}f{self.filters}{stride}{inputs}"


def make_layer(values: dict[str, int], inputs: tuple[int, ...] = ()) -> Layer:
    """A layer from the values of its decisions and the numbers of the layers it takes."""
    if "kernel" in values:
        return Layer(values["kernel"], values["kernel"], values["filters"], values["padding"])
    stride = values.get("stride_height", 1), values.get("stride_width", 1)
    return Layer(values["height"], values["width"], values["filters"], None, stride, inputs)


@dataclass(frozen=True)
class Architecture:
    """A network as a value; its text form, such as `k5f16p0-k5f32p1`, is its name everywhere."""

    layers: tuple[Layer, ...]

    def __str__(self) -> str:
        return "-".join(map(str, self.layers))

    @property
    def paper(self) -> bool:
        return self.layers[0].padding is None

    @property
    def inputs(self) -> list[tuple[int, ...]]:
        """What each layer takes: numbers of layers, 0 the image. In the original space the one before it."""
        return [layer.inputs or (0,) if self.paper else (i,) for i, layer in enumerate(self.layers)]

    @property
    def outputs(self) -> tuple[int, ...]:
        """The layers that no layer takes: the classifier does (§3.3)."""
        taken = {j for inputs in self.inputs for j in inputs}
        return tuple(j for j in range(1, len(self.layers) + 1) if j not in taken)


ORIGINAL_LAYER = re.compile(r"k(?P<kernel>\d+)f(?P<filters>\d+)p(?P<padding>\d+)", re.ASCII)
PAPER_LAYER = re.compile(
    r"c(?P<height>\d+)x(?P<width>\d+)f(?P<filters>\d+)(s(?P<stride_height>\d+)x(?P<stride_width>\d+))?"
    r"(i(?P<inputs>\d+(\.\d+)*))?",
    re.ASCII,
)


def parse_architecture(text: str) -> Architecture:
    """Read an architecture's text form; ValueError for a text that no space of this program can write."""
    paper, layers = text.startswith("c"), []
    for number, part in enumerate(text.split("-"), start=1):
        match = (PAPER_LAYER if paper else ORIGINAL_LAYER).fullmatch(part)
        if match is None or len(part) > 1000:
            raise ValueError(f"{text!r} is not an architecture: write one like k5f16p0-k5f32p1 or c3x3f36-c5x1f48i1")
        found = {name: value for name, value in match.groupdict().items() if value is not None}
        inputs = sorted({int(j) for j in found.pop("inputs", "").split(".") if j})
        values = {name: int(value) for name, value in found.items()}
        for name, choices in (*SIZES, *STRIDES, *FILTERS) if paper else ORIGINAL:
            if name in values and values[name] not in choices:
                listed = ", ".join(map(str, choices))
                raise ValueError(f"{text!r} is outside the search space: {name} {values[name]} is not one of {listed}")
        layer = make_layer(values, tuple(inputs))
        if not all(0 < j < number for j in layer.inputs):
            raise ValueError(f"{text!r} is outside the search space: the inputs of {part} are not layers before it")
        if str(layer) != part:
            raise ValueError(f"{text!r} is not an architecture: write {part} as {layer}")
        layers.append(layer)
    return Architecture(tuple(layers))


@dataclass(frozen=True)
class SearchSpace:
    """All architectures of up to `num_layers` layers; the default is the original system's, 3^6 = 729 networks."""

    num_layers: int = 2
    paper: bool = False  # rectangular filters and skip connections (§3.1, §3.3)
    strides: bool = False  # in the paper's space: predicted too, instead of fixed to 1

    @property
    def layer_decisions(self) -> tuple[Decision, ...]:
        """The decisions of one layer in the order in which the controller makes them."""
        if not self.paper:
            return ORIGINAL
        return (*SIZES, *(STRIDES if self.strides else ()), *FILTERS, ANCHOR_POINT)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The decisions of all layers."""
        return self.layer_decisions * self.num_layers

    @property
    def tokens(self) -> list[tuple[int, str, tuple[int, ...]]]:
        """Layer (from 1), name and choices of each of the T tokens; an anchor point's are `input 1`, `input 2`, ..."""
        tokens = []
        for layer in range(1, self.num_layers + 1):
            tokens += [(layer, d.name, d.choices) for d in self.layer_decisions if d != ANCHOR_POINT]
            tokens += [(layer, f"input {j}", (0, 1)) for j in range(1, layer) if self.paper]
        return tokens

    def decode(self, actions: Sequence[int]) -> Architecture:
        """The architecture that T choice indices describe; the first tokens alone describe a shallower one."""
        rest, layers = list(reversed(actions)), []
        while rest:
            values = {name: choices[rest.pop()] for name, choices in self.layer_decisions if choices}
            inputs = tuple(j for j in range(1, len(layers) + 1) if self.paper and rest.pop())
            layers.append(make_layer(values, inputs))
        return Architecture(tuple(layers))


class Child(nn.Module):
    """The network an architecture describes; `image_shape` is (C, H, W).

    Original space: [conv, max-pool 2, ReLU] per layer, linear 84, ReLU, linear; the pool is left out in the last layer
    and wherever the map is less than 8 pixels wide. Paper: [conv, batch norm, ReLU] per layer on the depth-wise
    concatenation of its inputs, or on the image where it has none; then the outputs that no layer takes, global average
    pooling, linear. Maps of different sizes are padded with zeros (§3.3). ValueError if a map would shrink below 1x1.
    """

    def __init__(self, architecture: Architecture, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        self.pools, self.architecture, paper = [], architecture, architecture.paper
        shapes = [image_shape]  # of the image and of each layer's output
        for i, (layer, inputs) in enumerate(zip(architecture.layers, architecture.inputs, strict=True)):
            channels = sum(shapes[j][0] for j in inputs)
            kernel, padding = (layer.height, layer.width), layer.padding
            padding = (padding, padding) if padding is not None else (layer.height // 2, layer.width // 2)
            size = [max(shapes[j][1 + axis] for j in inputs) for axis in range(2)]
            size = [(size[a] + 2 * padding[a] - kernel[a]) // layer.stride[a] + 1 for a in range(2)]
            if min(size) < 1:
                raise ValueError(f"{architecture}: the feature map of layer {i + 1} shrinks below 1x1")
            self.convs.append(nn.Conv2d(channels, layer.filters, kernel, layer.stride, padding, bias=not paper))
            self.norms.append(nn.BatchNorm2d(layer.filters) if paper else nn.Identity())
            pool = not paper and i < len(architecture.layers) - 1 and min(size) >= 8
            self.pools.append(pool)
            shapes.append((layer.filters, *(pixels // 2 if pool else pixels for pixels in size)))
        features = sum(shapes[j][0] for j in architecture.outputs)
        if not paper:
            self.hidden = nn.Linear(features * shapes[-1][1] * shapes[-1][2], 84)
        self.classifier = nn.Linear(features if paper else 84, num_classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of normalised float images (B, C, H, W)."""
        maps = [images]
        for conv, norm, pool, inputs in zip(self.convs, self.norms, self.pools, self.architecture.inputs, strict=True):
            x = norm(conv(concatenate([maps[j] for j in inputs])))
            if pool:
                x = F.max_pool2d(x, 2)  # before ReLU: the same result, a quarter of the work
            maps.append(F.relu(x))
        x = concatenate([maps[j] for j in self.architecture.outputs])
        if self.architecture.paper:
            return self.classifier(x.mean((2, 3)))
        x = x.permute(0, 2, 3, 1).flatten(1)  # (B, H * W * C), the order in memory: no copy
        return self.classifier(F.relu(self.hidden(x)))


def concatenate(maps: list[Tensor]) -> Tensor:
    """Feature maps (B, C_i, H_i, W_i) joined in depth, smaller ones padded with zeros below and to the right (§3.3)."""
    if len(maps) == 1:
        return maps[0]
    height, width = (max(x.shape[axis] for x in maps) for axis in (2, 3))
    return torch.cat([F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2])) for x in maps], 1)


class LayerSummary(NamedTuple):
    name: str
    output_shape: tuple[int, ...]  # without the batch dimension
    parameters: int
    flops: int  # of one image's forward pass, 2 per multiply-add, convolutions and linear layers


def summarize(child: Child, image_shape: tuple[int, int, int]) -> list[LayerSummary]:
    """Output shape, parameters and forward FLOPs of each layer, read off a real forward pass."""
    rows, norms = [], dict(zip(child.convs, child.norms, strict=True))

    def record(layer: nn.Module, _: tuple, output: Tensor) -> None:
        norm = list(norms[layer].parameters()) if layer in norms else []
        parameters = sum(p.numel() for p in (*layer.parameters(), *norm))
        flops = 2 * layer.weight.numel() * (output[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1)
        name = re.sub(r", bias=\w+|, stride=\(1, 1\)", "", str(layer)) + (", batch norm" if norm else "")
        rows.append(LayerSummary(name, tuple(output.shape[1:]), parameters, flops))

    hooks = [m.register_forward_hook(record) for m in child.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    training = child.training
    with torch.inference_mode():
        child.eval()(torch.zeros(1, *image_shape, device=next(child.parameters()).device))
    child.train(training)
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
    flip: bool = False  # augmentation: images are mirrored with probability 1/2
    nesterov: float = 0.0  # momentum of SGD with a constant lr, instead of Adam and Muon
    weight_decay: float = 0.0  # of SGD
    best_of: int = 1  # the accuracy is the best one after each of the last so many epochs


PAPER_RECIPE = Recipe(  # §4.1; the batch size is not in the paper
    epochs=50, batch_size=128, lr=0.1, nesterov=0.9, weight_decay=1e-4, label_smoothing=0, shift=4, flip=True, best_of=5
)


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
    optimizers = make_optimizers(child, recipe)

    batch_size = min(recipe.batch_size, len(labels))
    steps_per_epoch = len(labels) // batch_size
    num_steps = max(1, round(recipe.epochs * steps_per_epoch))
    measured = []
    for step in range(num_steps):
        if step % steps_per_epoch == 0:
            order = torch.randperm(len(labels), generator=generator).to(device)
        start = step % steps_per_epoch * batch_size
        batch = order[start : start + batch_size]
        images = pixels[batch]
        if recipe.shift:
            images = random_shift(images, recipe.shift, generator)
        if recipe.flip:
            images = random_flip(images, generator)
        loss = F.cross_entropy(child(normalize(images)), labels[batch], label_smoothing=recipe.label_smoothing)
        loss.backward()
        for optimizer in optimizers:
            group = optimizer.param_groups[0]
            if not recipe.nesterov:
                group["lr"] = optimizer.defaults["lr"] * one_cycle((step + 0.5) / num_steps, recipe.warmup)
            optimizer.step()
            optimizer.zero_grad()
        if images_seen is not None:
            images_seen += batch_size
        epochs_left, rest = divmod(num_steps - 1 - step, steps_per_epoch)
        if rest == 0 and epochs_left < recipe.best_of:
            measured.append(measure(child, held_out, device))

    accuracy, top5_accuracy = max(measured)
    parameters = sum(p.numel() for p in child.parameters())
    return TrainedChild(child.eval(), accuracy, top5_accuracy, parameters, time.perf_counter() - started)


def make_optimizers(child: Child, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """SGD for everything, or Muon for the filters of the convolutions and Adam for the rest."""
    if recipe.nesterov:
        settings = {"lr": recipe.lr, "momentum": recipe.nesterov, "weight_decay": recipe.weight_decay}
        return [torch.optim.SGD(child.parameters(), nesterov=True, **settings)]
    filters = {conv.weight for conv in child.convs} if recipe.filter_lr else set()
    others = [p for p in child.parameters() if p not in filters]
    optimizers: list = [torch.optim.Adam(others, lr=recipe.lr, betas=recipe.betas, fused=True)]
    return [*optimizers, Muon(filters, lr=recipe.filter_lr, momentum=recipe.momentum)] if filters else optimizers


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


def random_flip(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image (B, C, H, W) from left to right with probability 1/2."""
    mirrored = torch.rand(len(pixels), generator=generator).to(pixels.device) < 0.5
    return torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)


@torch.inference_mode()
def measure(child: Child, images: Images, device: str = "cpu") -> tuple[float, float]:
    """Top-1 and top-5 accuracy of a child, 0 to 1, with batch norm's running statistics."""
    child.eval()
    logits = torch.cat([child(normalize(pixels.to(device))) for pixels in images.pixels.split(500)])
    child.train()
    labels = images.labels.to(device)
    return top_k_accuracy(logits, labels, 1), top_k_accuracy(logits, labels, 5)


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int) -> float:
    """Share of rows of `logits` (N, classes) whose label (N,) is among the k largest."""
    best = logits.topk(min(k, logits.shape[1])).indices  # (N, k)
    return (best == labels[:, None]).any(1).sum().item() / len(labels)
