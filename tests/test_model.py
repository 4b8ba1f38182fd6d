"""The search space, the child networks and their training."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from test_search_space import architectures

import model
from datasets import Data, Images
from model import (
    PAPER_RECIPE,
    Child,
    FromPixels,
    ImpossibleNetwork,
    LayerSummary,
    Muon,
    Recipe,
    augment,
    concatenate,
    draw_augmentation,
    make_optimizers,
    measure,
    normalize,
    on_device,
    one_cycle,
    orthogonalize,
    size_or_none,
    summarize,
    top_k_accuracy,
    train_child,
    with_min_steps,
)
from search_space import Architecture, Layer, parse_architecture

MIDDLE = parse_architecture("k5f16p0-k5f32p1")


def random_images(n: int, shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10, seed: int = 0) -> Images:
    """Noise with a bright bar whose row tells the class: easy to learn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    pixels = torch.randint(0, 60, (n, *shape), generator=generator, dtype=torch.uint8)
    pixels[torch.arange(n), :, 2 + 2 * labels] = 255
    return Images(pixels, labels)


# --- the child ----------------------------------------------------------------------------------------------------


def test_two_layers_are_the_original_network_with_batch_norm():
    """Sizes worked out by hand: 28 -5+1-> 24 -pool-> 12 -5+2+1-> 10; batch norm has two numbers a filter, no bias."""
    rows = summarize(Child(MIDDLE, (1, 28, 28), 10))
    assert [row.output_shape for row in rows] == [(16, 24, 24), (32, 10, 10), (84,), (10,)]
    assert [row.parameters for row in rows] == [16 * (25 + 2), 32 * (16 * 25 + 2), 84 * 3201, 10 * 85]
    assert rows[0].flops == 2 * 25 * 16 * 24 * 24
    assert rows[1].flops == 2 * 25 * 16 * 32 * 10 * 10
    assert rows[2].flops == 2 * 3200 * 84


def test_the_child_computes_what_its_description_says():
    child = Child(MIDDLE, (1, 28, 28), 10)
    x = torch.randn(3, 1, 28, 28)
    (first, second), norms = child.convs, child.norms
    for norm in norms:  # a negative factor tells whether the pooling comes before it
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    maps = torch.nn.functional.max_pool2d(torch.nn.functional.conv2d(x, first.weight), 2)
    maps = normalized(maps, norms[0]).relu()
    maps = normalized(torch.nn.functional.conv2d(maps, second.weight, padding=1), norms[1]).relu()
    expected = child.classifier(child.hidden(maps.permute(0, 2, 3, 1).flatten(1)).relu())
    torch.testing.assert_close(child(x), expected, rtol=1e-4, atol=1e-5)


def normalized(maps: torch.Tensor, norm: torch.nn.BatchNorm2d) -> torch.Tensor:
    """Batch normalisation in training, by its definition."""
    variance, mean = torch.var_mean(maps, (0, 2, 3), correction=0, keepdim=True)
    return (maps - mean) / (variance + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def test_a_summary_names_each_layer_and_counts_what_it_costs():
    """By hand: 2 per multiply-add; instead of a bias, batch norm's two numbers for each filter."""
    child = Child(parse_architecture("k5f16p0-k3f8p2"), (1, 28, 28), 7)
    assert summarize(child) == [
        LayerSummary("Conv2d(1, 16, kernel_size=(5, 5)), batch norm", (16, 24, 24), 16 * 27, 2 * 25 * 16 * 24 * 24),
        LayerSummary(
            "Conv2d(16, 8, kernel_size=(3, 3), padding=(2, 2)), batch norm",
            *((8, 14, 14), 8 * 146, 2 * 144 * 8 * 14 * 14),
        ),
        LayerSummary("Linear(in_features=1568, out_features=84)", (84,), 84 * 1569, 2 * 84 * 1568),
        LayerSummary("Linear(in_features=84, out_features=7)", (7,), 7 * 85, 2 * 7 * 84),
    ]
    child = Child(parse_architecture("c3x5f24-c1x7f36s2x3i1"), (3, 12, 15), 7)
    assert summarize(child) == [
        LayerSummary(
            "Conv2d(3, 24, kernel_size=(3, 5), padding=(1, 2)), batch norm",
            *((24, 12, 15), 24 * 3 * 15 + 2 * 24, 2 * 24 * 3 * 15 * 12 * 15),
        ),
        LayerSummary(
            "Conv2d(24, 36, kernel_size=(1, 7), stride=(2, 3), padding=(0, 3)), batch norm",
            *((36, 6, 5), 36 * 24 * 7 + 2 * 36, 2 * 36 * 24 * 7 * 6 * 5),
        ),
        LayerSummary("Linear(in_features=36, out_features=7)", (7,), 7 * 37, 2 * 7 * 36),
    ]


def convolution(number: int, filters: int = 1, pool: bool = False, **conv: tuple[int, int]) -> Layer:
    """A layer that none of the spaces has."""
    return Layer(f"layer{number}", filters, conv, (number - 1,), pool=pool)


def test_a_layer_may_be_any_convolution():
    dilated = Architecture(
        (convolution(1, 1, kernel_size=(3, 2), dilation=(2, 3), stride=(1, 2), padding=(1, 0)),), None
    )
    child = Child(dilated, (2, 9, 9), 3)
    assert summarize(child) == [
        LayerSummary(
            "Conv2d(2, 1, kernel_size=(3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 3)), batch norm",
            *((1, 7, 3), 1 * 2 * 6 + 2, 2 * 1 * 2 * 6 * 7 * 3),
        ),
        LayerSummary("Linear(in_features=1, out_features=3)", (3,), 6, 6),
    ]
    x = torch.randn(2, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    (conv,) = child.convs
    maps = torch.zeros(2, 1, 7, 3)
    padded = torch.zeros(2, 2, 11, 9)
    padded[:, :, 1:10] = x
    for row in range(7):
        for column in range(3):
            window = padded[:, :, row : row + 5 : 2, 2 * column : 2 * column + 4 : 3]
            maps[:, 0, row, column] = (conv.weight[0] * window).sum((1, 2, 3))
    expected = child.classifier(normalized(maps, child.norms[0]).relu().mean((2, 3)))
    torch.testing.assert_close(child(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "conv, smallest",
    [
        ({"kernel_size": (3, 1)}, (3, 1)),
        ({"kernel_size": (1, 3)}, (1, 3)),
        ({"kernel_size": (7, 5), "padding": (1, 2)}, (5, 1)),
        ({"kernel_size": (3, 3), "dilation": (2, 1)}, (5, 3)),
        ({"kernel_size": (2, 3), "dilation": (3, 2), "padding": (1, 1), "stride": (2, 2)}, (2, 3)),
    ],
)
def test_a_map_of_one_pixel_is_the_smallest(conv, smallest):
    """The smallest image works, for any stride; a pixel less in height or in width does not."""
    architecture = Architecture((convolution(1, kernel_size=(1, 1)), convolution(2, **conv)), None)
    height, width = smallest
    rows = summarize(Child(architecture, (1, height, width), 3))
    assert rows[1].output_shape == (1, 1, 1)
    for shape in ((1, height - 1, width), (1, height, width - 1)):
        if min(shape) > 0:
            with pytest.raises(ImpossibleNetwork) as caught:
                Child(architecture, shape, 3)
            assert str(caught.value) == "layer1-layer2: the feature map of layer 2 shrinks below 1x1"


@pytest.mark.parametrize("shape, pooled", [((8, 8), True), ((8, 7), False), ((7, 8), False), ((30, 7), False)])
def test_a_map_is_pooled_from_8_pixels_in_height_and_width(shape, pooled):
    layers = convolution(1, 4, True, kernel_size=(1, 1)), convolution(2, 4, True, kernel_size=(1, 1))
    child = Child(Architecture(layers, None), (1, *shape), 3)
    assert child.pooled == [{1} if pooled else set(), set()]
    side = [n // 2 if pooled else n for n in shape]
    assert [row.output_shape[1:] for row in summarize(child)[:2]] == [shape, tuple(side)]
    without = Child(Architecture((convolution(1, 4, kernel_size=(1, 1)), layers[1]), None), (1, *shape), 3)
    assert without.pooled == [set(), set()]


@pytest.mark.parametrize("text", ["k5f16p0-k3f8p1", "c3x3f24-c3x3f36i1"])
def test_what_a_child_is_made_of(text):
    architecture = parse_architecture(text)
    child = Child(architecture, (3, 16, 16), 10)
    assert child.architecture is architecture
    for conv, norm, layer in zip(child.convs, child.norms, architecture.layers, strict=True):
        assert {name: getattr(conv, name) for name in layer.conv} == layer.conv
        assert conv.bias is None and type(norm) is torch.nn.BatchNorm2d and norm.num_features == layer.filters
        assert conv.weight.is_contiguous(memory_format=torch.channels_last) and conv.weight.requires_grad
    if text.startswith("c"):
        assert child.hidden is None and child.classifier.in_features == 36
        assert [norm.num_features for norm in child.norms] == [24, 36]
    else:
        assert (child.hidden.in_features, child.hidden.out_features) == (8 * 6 * 6, 84)
        assert child.classifier.in_features == 84
    assert child.classifier.out_features == 10


def test_maps_are_joined_below_and_to_the_right():
    maps = [torch.randn(2, c, h, w, generator=torch.Generator().manual_seed(c)) for c, h, w in
            ((1, 2, 5), (3, 4, 1), (2, 3, 3))]  # fmt: skip
    joined = concatenate(maps)
    expected = torch.zeros(2, 6, 4, 5)
    expected[:, :1, :2, :5], expected[:, 1:4, :4, :1], expected[:, 4:, :3, :3] = maps
    assert torch.equal(joined, expected)
    assert concatenate(maps[:1]) is maps[0]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 24, 40)])
@pytest.mark.parametrize("text", ["k3f8p1", "k5f16p0-k5f32p1", "-".join(["k3f8p1"] * 6)])
def test_any_depth_channels_size_and_classes(text, shape):
    child = Child(parse_architecture(text), shape, num_classes=7)
    assert child(torch.zeros(2, *shape)).shape == (2, 7)


def test_no_pooling_in_the_last_layer_or_below_8_pixels():
    child = Child(parse_architecture("-".join(["k3f8p1"] * 6)), (1, 28, 28), 10)
    assert child.pooled == [{1}, {2}, set(), set(), set(), set()]  # 28 -> 14 -> 7, and 7 stays


def channels_in(child: Child) -> list[int]:
    return [conv.in_channels for conv in child.convs]


def test_repair_a_layer_without_input_takes_the_image():
    child = Child(parse_architecture("c3x3f24-c3x3f36-c3x3f48i2"), (3, 16, 16), 10)
    assert channels_in(child) == [3, 3, 36]


def test_repair_outputs_that_no_layer_takes_go_to_the_classifier():
    child = Child(parse_architecture("c3x3f24-c3x3f36-c3x3f48i2"), (3, 16, 16), 10)
    assert child.architecture.outputs == (1, 3) and child.classifier.in_features == 24 + 48
    child = Child(parse_architecture("c3x3f24-c3x3f36i1-c3x3f48i1.2"), (3, 16, 16), 10)
    assert child.architecture.outputs == (3,) and channels_in(child) == [3, 24, 24 + 36]


def test_repair_smaller_maps_are_padded_with_zeros():
    """16x16 stays; stride 2x3 makes 8x6 of it; both enter the third layer as 16x16."""
    large, small = torch.ones(1, 2, 4, 4), 2 * torch.ones(1, 1, 2, 3)
    joined = concatenate([large, small])
    assert joined[0, :2].eq(1).all() and joined[0, 2].tolist() == [[2, 2, 2, 0], [2, 2, 2, 0], [0] * 4, [0] * 4]
    child = Child(parse_architecture("c3x3f24-c3x3f36s2x3i1-c5x5f48i1.2"), (3, 16, 16), 10)
    rows = summarize(child)
    assert [row.output_shape for row in rows] == [(24, 16, 16), (36, 8, 6), (48, 16, 16), (10,)]
    assert channels_in(child)[2] == 24 + 36


def test_earlier_maps_are_pooled_where_a_layer_is():
    """The first map and the image are 16 pixels wide; layer 3 takes both, and layer 2 is pooled."""
    torch.manual_seed(0)
    child = Child(parse_architecture("c3x3f24-c1x1f36mi1-c3x3f24i1.2-c3x1f24"), (1, 16, 16), 10).eval()
    far_from_doing_nothing(child)
    assert child.pooled == [set(), {0, 1, 2}, set(), set()]
    conv, pool, norm = torch.nn.functional.conv2d, torch.nn.functional.max_pool2d, child.norms
    image = torch.randn(2, 1, 16, 16)
    one = norm[0](conv(image, child.convs[0].weight, padding=1)).relu()
    two = norm[1](pool(conv(one, child.convs[1].weight), 2)).relu()
    three = norm[2](conv(torch.cat([pool(one, 2), two], 1), child.convs[2].weight, padding=1)).relu()
    four = norm[3](conv(pool(image, 2), child.convs[3].weight, padding=(1, 0))).relu()
    expected = child.classifier(torch.cat([three, four], 1).mean((2, 3)))
    torch.testing.assert_close(child(image), expected, rtol=1e-4, atol=1e-5)
    assert [row.output_shape[1:] for row in summarize(child)[:4]] == [(16, 16), (16, 16), (8, 8), (8, 8)]


def test_maps_below_8_pixels_are_not_pooled_beside_larger_ones():
    child = Child(parse_architecture("c3x3f24s3x3-c1x1f36m-c3x3f24i1.2"), (1, 16, 16), 10)
    assert child.pooled == [set(), {2}, set()]  # 16, a third of it, and 8 of the second
    assert child(torch.zeros(2, 1, 16, 16)).shape == (2, 10)


def test_more_filters_by_counting_parameters():
    child = Child(parse_architecture("c3x5f24m-c1x7f36i1-c3x3f24i1.2").widened(40), (3, 16, 16), 10)
    convolutions = 3 * 15 * 64 + 64 * 7 * 76 + (64 + 76) * 9 * 64
    batch_norm = 2 * (64 + 76 + 64)
    assert sum(p.numel() for p in child.parameters()) == convolutions + batch_norm + 64 * 10 + 10


def far_from_doing_nothing(child: Child) -> None:
    """Batch norm with statistics, weights and biases that change its input."""
    for norm in child.norms:
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.uniform_(0.5, 2)


def test_the_papers_child_computes_what_its_description_says():
    torch.manual_seed(0)
    child = Child(parse_architecture("c3x1f24-c5x3f36i1-c1x1f24"), (1, 9, 9), 10).eval()
    x = torch.randn(2, 1, 9, 9)
    far_from_doing_nothing(child)
    first, second, third = child.convs
    one, three = (child.norms[i](torch.nn.functional.conv2d(x, conv.weight, padding=padding)).relu()
                  for i, conv, padding in ((0, first, (1, 0)), (2, third, 0)))  # fmt: skip
    two = child.norms[1](torch.nn.functional.conv2d(one, second.weight, padding=(2, 1))).relu()
    expected = child.classifier(torch.cat([two, three], 1).mean((2, 3)))
    torch.testing.assert_close(child(x), expected, rtol=1e-4, atol=1e-5)


@given(architectures())
@settings(max_examples=50, deadline=None)
def test_any_child_runs_or_names_the_layer_that_vanishes(architecture):
    try:
        child = Child(architecture, (1, 20, 20), 10)
    except ValueError as error:
        assert "shrinks below 1x1" in str(error)
    else:
        shapes = []
        for layer in (*child.convs, child.hidden, child.classifier):
            if layer is not None:
                layer.register_forward_hook(lambda _, inputs, output: shapes.append(tuple(output.shape[1:])))
        assert child.eval()(torch.zeros(1, 1, 20, 20)).shape == (1, 10)
        layers = summarize(child)
        assert [layer.output_shape for layer in layers] == shapes
        assert sum(layer.parameters for layer in layers) == sum(p.numel() for p in child.parameters())


def test_the_size_of_a_network_is_told_where_it_is_possible():
    data = Data(random_images(3, (2, 23, 9)), random_images(3), 7)
    child = Child(MIDDLE, (2, 23, 9), 7)
    parameters, flops = sum(p.numel() for p in child.parameters()), sum(layer.flops for layer in summarize(child))
    assert size_or_none(MIDDLE, data) == {"parameters": parameters, "flops": flops}
    assert size_or_none(parse_architecture("k7f16p0-k5f8p0"), data) is None


def test_a_map_that_vanishes_is_a_clear_error():
    with pytest.raises(ValueError, match="layer 3 shrinks below 1x1"):
        Child(parse_architecture("k7f8p0-k7f8p0-k7f8p0"), (1, 28, 28), 10)


def test_top_k_accuracy_by_hand():
    logits = torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.1, 0.3], [0.2, 0.3, 0.9]])
    labels = torch.tensor([1, 2, 0])
    assert [top_k_accuracy(logits, labels, k) for k in (1, 2, 3, 5)] == [1 / 3, 2 / 3, 1, 1]


def test_top_k_accuracy_counts_by_sorting():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 7, generator=generator)
    labels = torch.randint(7, (40,), generator=generator)
    ranks = (logits > logits[torch.arange(40), labels][:, None]).sum(1)  # how many are larger
    for k in range(1, 9):
        assert top_k_accuracy(logits, labels, k) == (ranks < k).sum().item() / 40


# --- training -----------------------------------------------------------------------------------------------------


def test_all_that_is_made_stays_on_the_device_of_the_images(monkeypatch):
    """On the device "meta", where tensors have shapes alone; one that stays on the CPU meets the others and fails."""
    pixels = torch.zeros(20, 3, 16, 12, dtype=torch.uint8, device="meta")
    offsets, mirrored = torch.zeros(2, 20, dtype=torch.int64, device="meta"), torch.zeros(20, device="meta") < 0.5
    for recipe in (Recipe(shift=2), Recipe(flip=True)):
        moved = augment(pixels, recipe, offsets, mirrored)
        assert moved.device.type == "meta" and moved.shape == pixels.shape and moved.dtype == torch.uint8
    assert orthogonalize(torch.ones(3, 4, device="meta")).shape == (3, 4)
    architecture = parse_architecture("c3x3f24-c3x3f36s2x3i1-c5x5f48i1.2")
    child = Child(architecture, (3, 16, 12), 7).to("meta")
    rows = summarize(child)
    assert [row.output_shape for row in rows] == [(24, 16, 12), (36, 8, 4), (48, 16, 12), (7,)]
    monkeypatch.setattr(model, "measure", lambda child, images: (images.labels.device.type == "meta", 0.5))
    images = random_images(40, (3, 28, 28))
    recipe = replace(PAPER_RECIPE, epochs=1, batch_size=16)
    trained = train_child(architecture, on_device(Data(images, images, 10), "meta"), recipe, seed=0)
    assert trained.accuracy == 1 and all(p.is_meta for p in trained.child.parameters())


def test_each_value_of_a_pixel_becomes_a_number_from_minus_one_to_one():
    """Through mean 0.5 and standard deviation 0.5 of what lies between 0 and 1."""
    pixels = torch.arange(256, dtype=torch.uint8).view(2, 4, 8, 4)
    normal = normalize(pixels)
    expected = torch.tensor([(value / 255 - 0.5) / 0.5 for value in range(256)]).view(2, 4, 8, 4)
    torch.testing.assert_close(normal, expected, rtol=0, atol=1e-6)
    assert normal.is_contiguous(memory_format=torch.channels_last) and pixels.flatten().tolist() == list(range(256))


def test_images_are_put_on_the_device_once():
    data = Data(random_images(5), random_images(3), 10)
    there = on_device(data, "meta")
    for images, moved in zip(data[:2], there[:2], strict=True):
        assert type(moved) is Images and moved.pixels.is_meta and moved.labels.is_meta
        assert [tensor.shape for tensor in moved] == [tensor.shape for tensor in images]
    assert there[2:] == data[2:] and on_device(data, "meta") is there and on_device.cache_info().maxsize == 1


def test_one_cycle_at_the_middle_of_each_step():
    """Ten steps, four of them up: 1/8, 3/8, 5/8, 7/8 of the peak, then 11/12, 9/12, ..., 1/12."""
    values = [one_cycle((step + 0.5) / 10, 0.4) for step in range(10)]
    assert values == pytest.approx([1 / 8, 3 / 8, 5 / 8, 7 / 8, 11 / 12, 9 / 12, 7 / 12, 5 / 12, 3 / 12, 1 / 12])
    assert one_cycle(0, 0.2) == 0 and one_cycle(0.2, 0.2) == 1 and one_cycle(1, 0.2) == 0
    assert one_cycle(0, 0) == 1 and one_cycle(0.25, 0) == 0.75  # without warmup


@pytest.mark.parametrize("optimizer", ["muon", "adam", "sgd"])
@pytest.mark.parametrize("schedule", ["one_cycle", "constant"])
def test_the_learning_rate_of_each_step(monkeypatch, optimizer, schedule):
    """Two batches an epoch, five steps: 1/4, 3/4 up to 2/5 of them, then 5/6, 3/6 and 1/6 of the peak."""
    rates, made = [], []

    def note(child, recipe):
        made.extend(make_optimizers(child, recipe))
        for one in made:
            one.step = lambda one=one, step=one.step: (rates.append((type(one), one.param_groups[0]["lr"])), step())
        return made

    monkeypatch.setattr(model, "make_optimizers", note)
    images = random_images(35, (1, 24, 24))
    recipe = Recipe(epochs=2.5, batch_size=16, optimizer=optimizer, schedule=schedule, warmup=0.4)
    train_child(parse_architecture("k3f8p0"), Data(images, images, 10), recipe, seed=0)
    shares = [1 / 4, 3 / 4, 5 / 6, 3 / 6, 1 / 6] if schedule == "one_cycle" else [1] * 5
    peaks = {"muon": [(torch.optim.Adam, 0.006), (Muon, 0.03)], "adam": [(torch.optim.Adam, 0.006)]}
    peaks["sgd"] = [(torch.optim.SGD, 0.006)]
    expected = [(kind, share * peak) for share in shares for kind, peak in peaks[optimizer]]
    assert [kind for kind, _ in rates] == [kind for kind, _ in expected]
    assert [rate for _, rate in rates] == pytest.approx([rate for _, rate in expected], rel=1e-12)
    assert [p.grad for p in made[0].param_groups[0]["params"]] == [None] * len(made[0].param_groups[0]["params"])


def test_muon_by_hand_on_scalars():
    """A filter of 1x1x1x1 is pushed by the sign of its look-ahead alone, times what three iterations make of 1."""
    x = 1.0
    for _ in range(3):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    p = torch.nn.Parameter(torch.zeros(1, 1, 1, 1, dtype=torch.float64))
    muon, average, expected = Muon([p], lr=0.5, momentum=0.9), 0.0, 0.0
    assert muon.defaults == {"lr": 0.5, "momentum": 0.9}
    for gradient in (1.0, -0.05, -0.05, -0.4, 0.3):
        p.grad = torch.full_like(p, gradient)
        muon.step()
        average = 0.9 * average + 0.1 * gradient
        expected -= 0.5 * x * math.copysign(1, 0.9 * average + 0.1 * gradient)
        assert p.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape, scale", [((2, 1, 1, 2), 1), ((2, 2, 1, 3), 1), ((18, 2, 1, 1), 3), ((8, 1, 1, 2), 2)])
def test_muon_scales_its_step_by_the_root_of_height_over_width(shape, scale):
    p = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    p.grad = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    Muon([p], lr=0.25, momentum=0.6).step()
    step = orthogonalize(p.grad.flatten(1)).view(shape)  # of the first step, the gradient's size doesn't matter
    torch.testing.assert_close(p.data, -0.25 * scale * step, rtol=1e-5, atol=1e-7)


def test_orthogonalize_divides_by_the_norm_plus_a_little():
    matrix = torch.tensor([[3e-8, 4e-8]], dtype=torch.float64)
    x = 5e-8 / (5e-8 + 1e-7)
    for _ in range(3):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    expected = x * torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    torch.testing.assert_close(orthogonalize(matrix), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(orthogonalize(matrix.T), expected.T, rtol=1e-12, atol=0)


def test_adam_is_told_its_settings():
    child = Child(MIDDLE, (1, 28, 28), 10)
    recipe = Recipe(lr=0.123, filter_lr=0.456, betas=(0.1, 0.2), momentum=0.3)
    adam, muon = make_optimizers(child, recipe)
    assert {name: adam.defaults[name] for name in ("lr", "betas", "fused", "eps", "weight_decay")} == {
        **{"lr": 0.123, "betas": (0.1, 0.2), "fused": True, "eps": 1e-8, "weight_decay": 0}
    }
    assert muon.defaults == {"lr": 0.456, "momentum": 0.3}
    assert {id(p) for p in muon.param_groups[0]["params"]} == {id(conv.weight) for conv in child.convs}
    others = [p for name, p in child.named_parameters() if not ("convs" in name and "weight" in name)]
    assert list(map(id, adam.param_groups[0]["params"])) == list(map(id, others)) and len(others) == 8
    (adam,) = make_optimizers(child, replace(recipe, optimizer="adam"))
    assert list(map(id, adam.param_groups[0]["params"])) == list(map(id, child.parameters()))


def test_a_training_takes_one_thread_and_tells_its_time(monkeypatch):
    clock = iter([10.0, 12.5])
    monkeypatch.setattr(model, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    threads, images = torch.get_num_threads(), random_images(20)
    try:
        torch.set_num_threads(2)
        trained = train_child(parse_architecture("k3f8p0"), Data(images, images, 10), Recipe(epochs=1), seed=0)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert trained.seconds == 2.5 and not trained.child.training


@pytest.mark.parametrize(
    "n, recipe, batches",
    [
        (10, Recipe(epochs=1), [10]),
        (35, Recipe(epochs=1, batch_size=16), [16] * 2),  # the last 3 are left out
        (32, Recipe(epochs=2, batch_size=16), [16] * 4),
        (32, Recipe(epochs=0.01, batch_size=16), [16]),
        (48, Recipe(epochs=1.4, batch_size=16), [16] * 4),  # 4.2 steps
        (48, Recipe(epochs=1.6, batch_size=16), [16] * 5),  # 4.8 steps
    ],
)
def test_the_images_of_each_step(monkeypatch, n, recipe, batches):
    """Each epoch goes through its own order of the seed; images are told apart by one pixel."""
    images, seen = random_images(n, (1, 24, 24)), []
    images.pixels[:, 0, 0, 0] = torch.arange(n, dtype=torch.uint8)

    def note(pixels):
        seen.append(pixels[:, 0, 0, 0].tolist())
        return normalize(pixels)

    monkeypatch.setattr(model, "normalize", note)
    monkeypatch.setattr(model, "measure", lambda *_: (0.5, 0.5))
    train_child(parse_architecture("k3f8p0"), Data(images, images, 10), recipe, seed=9)
    generator, expected, left = torch.Generator().manual_seed(9), [], []
    for size in batches:
        if len(left) < size:
            left = torch.randperm(n, generator=generator).tolist()
        expected.append(left[:size])
        left = left[size:]
    assert seen == expected and [len(batch) for batch in seen] == batches


def test_measuring_normalises_the_images_in_evaluation_mode():
    """A child that answers with the pixels of an image's first row, in an order that tells the mode."""

    class Echo(torch.nn.Module):
        def forward(self, images):
            assert not self.training and images.is_inference()
            assert images.dtype == torch.float32 and images.min() >= -1 and images.max() <= 1
            return images[:, 0, 0]

    generator = torch.Generator().manual_seed(0)
    pixels = torch.stack([torch.randperm(12, generator=generator) for _ in range(1203)])  # rank of each class
    labels = torch.randint(12, (1203,), generator=generator)
    ranks = 11 - pixels[torch.arange(1203), labels]
    echo = Echo()
    expected = (ranks < 1).sum().item() / 1203, (ranks < 5).sum().item() / 1203
    assert measure(echo, Images(pixels.to(torch.uint8)[:, None, None], labels)) == expected
    assert echo.training and 0 < expected[0] < expected[1] < 1


def test_a_prediction_from_both_sides_is_the_mean_of_both():
    class Left(torch.nn.Module):
        def forward(self, images):
            return images[:, 0, 0, :3]

    pixels = torch.tensor([[9, 5, 8, 0, 0], [0, 0, 7, 0, 9]], dtype=torch.uint8)[:, None, None]
    torch.testing.assert_close(FromPixels(Left())(pixels), normalize(pixels)[:, 0, 0, :3])
    expected = torch.tensor([[4.5, 2.5, 8.0], [4.5, 0.0, 7.0]]) / 127.5 - 1
    torch.testing.assert_close(FromPixels(Left(), both_sides=True)(pixels), expected)
    images = Images(pixels, torch.tensor([0, 2]))
    assert measure(Left(), images)[0] == 1 and measure(Left(), images, both_sides=True)[0] == 0.5


@pytest.mark.parametrize(
    "text, recipe",
    [
        ("k3f8p0-k3f8p0", Recipe()),
        ("k5f16p0-k3f8p1", Recipe(epochs=1.5, shift=2)),
        ("c3x3f24s2x2-c1x3f36s2x1i1", replace(PAPER_RECIPE, epochs=3, best_of=2)),
    ],
)
def test_a_child_trained_twice_gives_the_same_numbers(text, recipe):
    train, held_out = random_images(700), random_images(300, seed=1)
    torch.manual_seed(1)
    first = train_child(parse_architecture(text), Data(train, held_out, 10), recipe, seed=5)
    torch.manual_seed(2)  # the caller's random state doesn't matter
    state = torch.get_rng_state()
    second = train_child(parse_architecture(text), Data(train, held_out, 10), recipe, seed=5)
    assert torch.equal(state, torch.get_rng_state())  # and is left alone
    assert first.accuracy == second.accuracy and first.top5_accuracy == second.top5_accuracy
    for name, tensor in first.child.state_dict().items():
        assert torch.equal(tensor, second.child.state_dict()[name]), name
    other = train_child(parse_architecture(text), Data(train, held_out, 10), recipe, seed=6)
    assert not torch.equal(first.child.classifier.weight, other.child.classifier.weight)


def test_mixed_precision_trains_in_bfloat16_and_keeps_weights_in_float32():
    """Other numbers than in float32, the same twice, and as good; what it leaves is a float32 network."""
    data = Data(random_images(2000), random_images(500, seed=1), 10)
    recipe = Recipe(epochs=0.6, precision="bfloat16")
    first, second = (train_child(MIDDLE, data, recipe, seed=3) for _ in range(2))
    plain = train_child(MIDDLE, data, replace(recipe, precision="float32"), seed=3)
    for mine, same, other in zip(*(t.child.state_dict().values() for t in (first, second, plain)), strict=True):
        assert torch.equal(mine, same) and mine.dtype == other.dtype
    assert not torch.equal(first.child.convs[1].weight, plain.child.convs[1].weight)
    assert first.accuracy == second.accuracy > 0.9 and plain.accuracy > 0.9


def test_training_learns_and_is_measured_on_the_held_out_images():
    train, held_out = random_images(2000), random_images(500, seed=1)
    trained = train_child(MIDDLE, Data(train, held_out, 10), Recipe(), seed=0)
    assert trained.accuracy > 0.9
    wrong = Images(held_out.pixels, (held_out.labels + 1) % 10)
    assert train_child(MIDDLE, Data(train, wrong, 10), Recipe(), seed=0).accuracy < 0.1


def test_the_papers_recipe():
    """§4.1: Nesterov momentum 0.9, a constant lr of 0.1, weight decay 1e-4, for all parameters."""
    child = Child(parse_architecture("c3x3f24s2x2-c1x3f36s2x1i1"), (1, 28, 28), 10)
    (optimizer,) = make_optimizers(child, PAPER_RECIPE)
    assert type(optimizer) is torch.optim.SGD and len(optimizer.param_groups[0]["params"]) == 2 * 3 + 2
    settings = {name: optimizer.defaults[name] for name in ("lr", "momentum", "weight_decay", "nesterov")}
    assert settings == {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": True}
    assert (PAPER_RECIPE.epochs, PAPER_RECIPE.best_of, PAPER_RECIPE.flip, PAPER_RECIPE.shift) == (50, 5, True, 4)


def test_flips_mirror_the_images_drawn_from_the_generator():
    images = random_images(200).pixels
    offsets, mirrored = draw_augmentation(Recipe(flip=True), 2, 100, torch.Generator().manual_seed(0))
    flipped = augment(images, Recipe(flip=True), offsets, mirrored.flatten())
    assert offsets.numel() == 0
    draws = torch.rand(200, generator=torch.Generator().manual_seed(0)).tolist()
    for image, result, draw in zip(images, flipped, draws, strict=True):
        assert torch.equal(result, image[:, :, list(range(27, -1, -1))] if draw < 0.5 else image)
    assert len({draw < 0.5 for draw in draws}) == 2


def test_fewer_images_than_a_batch_and_a_part_of_an_epoch():
    train, held_out = random_images(10), random_images(20, seed=1)
    for epochs in (0.01, 1, 2.5):
        assert 0 <= train_child(MIDDLE, Data(train, held_out, 10), Recipe(epochs=epochs), seed=0).accuracy <= 1


@pytest.mark.parametrize("n, epochs", [(10, 300), (640, 30), (3840, 5), (200_000, 5)])
def test_a_training_is_long_enough(n, epochs):
    """300 steps of 64 images, or of all if there are fewer; longer recipes stay as they are."""
    assert with_min_steps(Recipe(epochs=5, shift=1), n) == Recipe(epochs=epochs, shift=1)


def test_another_network_is_trained_alike():
    data, made = Data(random_images(300), random_images(100, seed=1), 10), []

    def make(image_shape: tuple[int, int, int], num_classes: int) -> Child:
        made.append((image_shape, num_classes))
        return Child(MIDDLE, image_shape, num_classes)

    ours, theirs = (train_child(network, data, Recipe(epochs=1), seed=3).child for network in (MIDDLE, make))
    assert made == [((1, 28, 28), 10)]
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))


def test_a_diverged_child_has_an_accuracy():
    train, held_out = random_images(300), random_images(100, seed=1)
    trained = train_child(MIDDLE, Data(train, held_out, 10), Recipe(lr=1e30, epochs=2.0), seed=0)
    assert not all(p.isfinite().all() for p in trained.child.parameters())
    assert 0 <= trained.accuracy <= 0.5


def test_colour_images_of_another_size():
    train, held_out = random_images(600, (3, 32, 32), classes=5), random_images(200, (3, 32, 32), classes=5, seed=1)
    assert train_child(MIDDLE, Data(train, held_out, 5), Recipe(), seed=0).accuracy > 0.3


@pytest.mark.parametrize("shape", [(8, 72), (16, 9), (5, 5)])
def test_orthogonalize_keeps_the_singular_vectors_and_levels_the_values(shape):
    matrix = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    values = u.T @ orthogonalize(matrix, iterations=10) @ v.T
    torch.testing.assert_close(values, values.diagonal().diag(), rtol=0, atol=1e-9)
    assert values.diagonal().min() > 0.65 and values.diagonal().max() < 1.25  # the iteration's known band around 1


@pytest.mark.parametrize("shift", [1, 2, 5])
def test_shifts_move_each_image_by_itself(shift):
    """Pixel by pixel: a window of the image with zeros around it, whose place is drawn for each image."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(1, 256, (40, 2, 4, 6), generator=generator, dtype=torch.uint8)
    (offsets,), mirrored = draw_augmentation(Recipe(shift=shift), 1, 40, torch.Generator().manual_seed(3))
    moved = augment(pixels, Recipe(shift=shift), offsets, mirrored)
    assert mirrored.numel() == 0
    assert moved.shape == pixels.shape and moved.dtype == torch.uint8
    downs, rights = torch.randint(0, 2 * shift + 1, (2, 40), generator=torch.Generator().manual_seed(3)).tolist()
    before, after = pixels.tolist(), moved.tolist()
    for i, (down, right) in enumerate(zip(downs, rights, strict=True)):
        for channel in range(2):
            for y in range(4):
                for x in range(6):
                    row, column = y + down - shift, x + right - shift
                    inside = 0 <= row < 4 and 0 <= column < 6
                    assert after[i][channel][y][x] == (before[i][channel][row][column] if inside else 0)
    assert {*downs, *rights} == set(range(2 * shift + 1)) and downs != rights


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_training_on_the_gpu_learns_the_same():
    train, held_out = random_images(2000), random_images(500, seed=1)
    trained = train_child(MIDDLE, on_device(Data(train, held_out, 10), "cuda"), Recipe(), seed=0)
    assert next(trained.child.parameters()).is_cuda and trained.accuracy > 0.9
