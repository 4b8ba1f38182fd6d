"""The search spaces as plain data: decisions, layers, architectures and their text form.

space = SmallSpace()                                   # 729 networks of two layers
architecture = space.decode([1, 1, 0, 1, 2, 1])        # what the controller's choices describe
assert architecture == parse_architecture("k5f16p0-k5f32p1")
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

ANCHOR_POINT = ("inputs", ())  # the decision that ends a layer: which earlier layers are its inputs (§3.3)


@dataclass(frozen=True)
class Layer:
    """A convolution as a value; what the spaces below write, and all that a network is built from."""

    text: str  # the layer's name, such as `k5f16p0` or `c3x5f36s2x1mi1.2`
    filters: int
    conv: dict[str, tuple[int, int]]  # arguments of `nn.Conv2d` beside the channels: kernel_size, ..., down and across
    inputs: tuple[int, ...]  # numbers of earlier layers, 0 the image
    pool: bool  # whether a max-pooling of 2 follows, where the map is large enough and the layer not the last


@dataclass(frozen=True)
class Architecture:
    """A network as a value; its text form, such as `k5f16p0-k5f32p1`, is its name everywhere."""

    layers: tuple[Layer, ...]
    hidden: int | None  # units of a linear layer before the classifier; None: global average pooling instead
    extra_filters: int = 0  # filters that were added to each layer; the text form doesn't show them

    def __str__(self) -> str:
        return "-".join(layer.text for layer in self.layers)

    @property
    def outputs(self) -> tuple[int, ...]:
        """The layers that no layer takes: the classifier does (§3.3)."""
        taken = {j for layer in self.layers for j in layer.inputs}
        return tuple(j for j in range(1, len(self.layers) + 1) if j not in taken)

    def needed_after(self, number: int) -> set[int]:
        """The maps of layers up to `number`, 0 the image, that a later layer or the classifier takes."""
        taken = {j for layer in self.layers[number:] for j in layer.inputs}
        return {j for j in taken.union(self.outputs) if j <= number}

    def widened(self, extra_filters: int) -> "Architecture":
        """The same network with more filters in every layer, the paper's last step (§4.1)."""
        layers = (replace(layer, filters=layer.filters + extra_filters) for layer in self.layers)
        return replace(self, layers=tuple(layers), extra_filters=self.extra_filters + extra_filters)


class Token(NamedTuple):
    layer: int  # from 1
    name: str  # the decision; at an anchor point `input 1`, `input 2`, ...
    choices: tuple[int, ...]


@dataclass(frozen=True)
class SearchSpace:
    """All architectures of up to `num_layers` layers.

    A space below adds what a layer is: `choices` and `decisions`, the function `layer` from values to a `Layer`,
    `pattern` to read its text form, and `hidden` of its architectures. A new one also needs its place in the first line
    of `parse_architecture`, in `space_of` and `space_around` of settings.py, in --space, and in
    `plots.plot_architecture`.
    """

    num_layers: int = 2

    @property
    def names(self) -> list[str]:
        """The decision of each step of the controller."""
        return [name for name, _ in self.decisions] * self.num_layers

    @property
    def num_choices(self) -> list[int]:
        """The number of choices of each step of the controller, 0 for an anchor point (`controller.ANCHOR`)."""
        return [len(choices) for _, choices in self.decisions] * self.num_layers

    @property
    def tokens(self) -> list[Token]:
        """The T tokens of the deepest networks, in the controller's order."""
        tokens = []
        for layer in range(1, self.num_layers + 1):
            tokens += [Token(layer, *decision) for decision in self.decisions if decision != ANCHOR_POINT]
            tokens += [Token(layer, f"input {j}", (0, 1)) for j in range(1, layer) if ANCHOR_POINT in self.decisions]
        return tokens

    def decode(self, actions: Sequence[int]) -> Architecture:
        """The architecture that T choice indices describe; the first tokens alone describe a shallower one."""
        values_of: dict[int, dict[str, int]] = {}  # for each layer, from 1, the values of its tokens
        for token, action in zip(self.tokens[: len(actions)], actions, strict=True):
            values_of.setdefault(token.layer, {})[token.name] = token.choices[action]
        for layer in self.pooled_layers(len(values_of)):
            values_of[layer]["pool"] = True
        layers = tuple(self.layer(number, values) for number, values in values_of.items())
        return Architecture(layers, self.hidden)

    def pooled_layers(self, num_layers: int) -> list[int]:
        """The layers, from 1, whose values get `pool`: none, as a space may pool by itself, like SmallSpace."""
        return []


@dataclass(frozen=True)
class SmallSpace(SearchSpace):
    """Square convolutions, each on the output of the one before it; with two layers 3^6 = 729 networks."""

    hidden: ClassVar = 84
    pattern: ClassVar = re.compile(r"k(?P<kernel>\d+)f(?P<filters>\d+)p(?P<padding>\d+)", re.ASCII)
    choices: ClassVar = {"kernel": (3, 5, 7), "filters": (8, 16, 32), "padding": (0, 1, 2)}
    decisions: ClassVar = tuple(choices.items())  # the decisions of one layer, in the controller's order

    @staticmethod
    def layer(number: int, values: dict[str, int]) -> Layer:
        """Layer `number`, from 1, with these values of its tokens."""
        kernel, filters, padding = values["kernel"], values["filters"], values["padding"]
        conv = {"kernel_size": (kernel, kernel), "padding": (padding, padding)}
        return Layer(f"k{kernel}f{filters}p{padding}", filters, conv, inputs=(number - 1,), pool=True)


@dataclass(frozen=True)
class PaperSpace(SearchSpace):
    """Rectangular convolutions that keep the size up to their stride, with skip connections (§3.1, §3.3, §4.1).

    Max-poolings are not predicted: `pooling` of them stand at evenly spaced places (§4.1, Table 1's third network).
    """

    strides: bool = False  # whether strides are predicted, instead of fixed to 1
    pooling: int = 0  # number of max-poolings of 2

    hidden: ClassVar = None
    pattern: ClassVar = re.compile(
        r"c(?P<height>\d+)x(?P<width>\d+)f(?P<filters>\d+)(s(?P<stride_height>\d+)x(?P<stride_width>\d+))?"
        r"(?P<pool>m)?(i(?P<inputs>\d+(\.\d+)*))?",
        re.ASCII,
    )
    choices: ClassVar = {
        "height": (1, 3, 5, 7),
        "width": (1, 3, 5, 7),
        "stride_height": (1, 2, 3),
        "stride_width": (1, 2, 3),
        "filters": (24, 36, 48, 64),
    }

    @property
    def decisions(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The decisions of one layer in the order in which the controller makes them."""
        chosen = ((name, choices) for name, choices in self.choices.items() if self.strides or "stride" not in name)
        return (*chosen, ANCHOR_POINT)

    def pooled_layers(self, num_layers: int) -> list[int]:
        """The layers, from 1, of a network of this depth that a max-pooling follows: of 6 with two poolings 2 and 4."""
        return [place * num_layers // (self.pooling + 1) for place in range(1, self.pooling + 1)]

    @staticmethod
    def layer(number: int, values: dict[str, int]) -> Layer:
        """Layer `number`, from 1, with these values of its tokens; without inputs it takes the image."""
        filters = values["filters"]
        size = (values["height"], values["width"])
        stride = (values.get("stride_height", 1), values.get("stride_width", 1))
        inputs = tuple(j for j in range(1, number) if values[f"input {j}"])
        pool = bool(values.get("pool"))
        text = "c{}x{}f{}".format(*size, filters)
        text += "s{}x{}".format(*stride) if stride != (1, 1) else ""
        text += "m" if pool else ""
        text += "i" + ".".join(map(str, inputs)) if inputs else ""
        padding = (size[0] // 2, size[1] // 2)  # keeps the size where the stride is 1
        conv = {"kernel_size": size, "padding": padding, "stride": stride}
        return Layer(text, filters, conv, inputs or (0,), pool)


def parse_architecture(text: str) -> Architecture:
    """Read an architecture's text form; ValueError for a text that no space of this program can write."""
    space = PaperSpace if text.startswith("c") else SmallSpace
    layers = []
    for number, part in enumerate(text.split("-"), start=1):
        match = space.pattern.fullmatch(part)
        if match is None or len(part) > 1000:
            raise ValueError(f"{text!r} is not an architecture: write one like k5f16p0-k5f32p1 or c3x3f36-c5x1f48i1")
        found = match.groupdict("")  # what is left out in the text is empty here
        inputs = [int(j) for j in found.pop("inputs", "").split(".") if j]
        pool = bool(found.pop("pool", ""))
        values = {name: int(value) for name, value in found.items() if value}
        for name, value in values.items():
            if value not in space.choices[name]:
                listed = ", ".join(map(str, space.choices[name]))
                raise ValueError(f"{text!r} is outside the search space: {name} {value} is not one of {listed}")
        if not all(0 < j < number for j in inputs):
            raise ValueError(f"{text!r} is outside the search space: the inputs of {part} are not layers before it")
        chosen = {f"input {j}": j in inputs for j in range(1, number)}
        layer = space.layer(number, {**values, **chosen, "pool": pool})
        if layer.text != part:
            raise ValueError(f"{text!r} is not an architecture: write {part} as {layer.text}")
        layers.append(layer)
    if space is PaperSpace and layers[-1].pool:
        raise ValueError(f"{text!r} is outside the search space: no max-pooling (m) follows the last layer")
    return Architecture(tuple(layers), space.hidden)
