"""The search space, the child networks and their training."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from test_search_space import architectures

import model
from model import (
    PAPER_RECIPE,
    Child,
    Recipe,
    concatenate,
    make_optimizers,
    orthogonalize,
    random_flip,
    random_shift,
    summarize,
    top_k_accuracy,
    train_child,
)
from search_space import parse_architecture
from utils import Data, Images

MIDDLE = parse_architecture("k5f16p0-k5f32p1")


def random_images(n: int, shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10, seed: int = 0) -> Images:
    """Noise with a bright bar whose row tells the class: easy to learn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    pixels = torch.randint(0, 60, (n, *shape), generator=generator, dtype=torch.uint8)
    pixels[torch.arange(n), :, 2 + 2 * labels] = 255
    return Images(pixels, labels)


# --- the child ----------------------------------------------------------------------------------------------------


def test_two_layers_are_the_original_network():
    """Sizes worked out by hand: 28 -5+1-> 24 -pool-> 12 -5+2+1-> 10."""
    rows = summarize(Child(MIDDLE, (1, 28, 28), 10), (1, 28, 28))
    assert [row.output_shape for row in rows] == [(16, 24, 24), (32, 10, 10), (84,), (10,)]
    assert [row.parameters for row in rows] == [16 * 26, 32 * (16 * 25 + 1), 84 * 3201, 10 * 85]
    assert rows[0].flops == 2 * 25 * 16 * 24 * 24
    assert rows[1].flops == 2 * 25 * 16 * 32 * 10 * 10
    assert rows[2].flops == 2 * 3200 * 84


def test_the_child_computes_what_its_description_says():
    child = Child(MIDDLE, (1, 28, 28), 10)
    x = torch.randn(3, 1, 28, 28)
    first, second = child.convs
    maps = torch.nn.functional.conv2d(x, first.weight, first.bias).relu()
    maps = torch.nn.functional.max_pool2d(maps, 2)
    maps = torch.nn.functional.conv2d(maps, second.weight, second.bias, padding=1).relu()
    expected = child.classifier(child.hidden(maps.permute(0, 2, 3, 1).flatten(1)).relu())
    torch.testing.assert_close(child(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 24, 40)])
@pytest.mark.parametrize("text", ["k3f8p1", "k5f16p0-k5f32p1", "-".join(["k3f8p1"] * 6)])
def test_any_depth_channels_size_and_classes(text, shape):
    child = Child(parse_architecture(text), shape, num_classes=7)
    assert child(torch.zeros(2, *shape)).shape == (2, 7)


def test_no_pooling_in_the_last_layer_or_below_8_pixels():
    child = Child(parse_architecture("-".join(["k3f8p1"] * 6)), (1, 28, 28), 10)
    assert child.pools == [True, True, False, False, False, False]  # 28 -> 14 -> 7, and 7 stays


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
    rows = summarize(child, (3, 16, 16))
    assert [row.output_shape for row in rows] == [(24, 16, 16), (36, 8, 6), (48, 16, 16), (10,)]
    assert channels_in(child)[2] == 24 + 36


def test_the_papers_child_computes_what_its_description_says():
    child = Child(parse_architecture("c3x1f24-c5x3f36i1-c1x1f24"), (1, 9, 9), 10).eval()
    x = torch.randn(2, 1, 9, 9)
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
        assert child.eval()(torch.zeros(1, 1, 20, 20)).shape == (1, 10)
        before = [tensor.clone() for tensor in child.train().state_dict().values()]
        layers = summarize(child, (1, 20, 20))
        assert sum(layer.parameters for layer in layers) == sum(p.numel() for p in child.parameters())
        assert child.training and all(map(torch.equal, before, child.state_dict().values()))


def test_a_map_that_vanishes_is_a_clear_error():
    with pytest.raises(ValueError, match="layer 3 shrinks below 1x1"):
        Child(parse_architecture("k7f8p0-k7f8p0-k7f8p0"), (1, 28, 28), 10)


def test_top_k_accuracy_by_hand():
    logits = torch.tensor([[0.1, 0.9, 0.5], [0.8, 0.1, 0.3], [0.2, 0.3, 0.9]])
    labels = torch.tensor([1, 2, 0])
    assert [top_k_accuracy(logits, labels, k) for k in (1, 2, 3, 5)] == [1 / 3, 2 / 3, 1, 1]


# --- training -----------------------------------------------------------------------------------------------------


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


def test_the_accuracy_is_the_best_after_each_of_the_last_epochs(monkeypatch):
    accuracies = iter([(0.3, 0.5), (0.9, 0.95), (0.6, 0.99)])
    monkeypatch.setattr(model, "measure", lambda *_: next(accuracies))
    images, recipe = random_images(200), Recipe(epochs=4, best_of=3)
    trained = train_child(parse_architecture("k3f8p0"), Data(images, images, 10), recipe, seed=0)
    assert (trained.accuracy, trained.top5_accuracy) == (0.9, 0.95) and next(accuracies, None) is None


def test_random_flip_mirrors_about_half_of_the_images():
    images = random_images(200).pixels
    flipped = random_flip(images, torch.Generator().manual_seed(0))
    same = (flipped == images).flatten(1).all(1)
    assert 70 < same.sum() < 130 and torch.equal(flipped[~same], images[~same].flip(3))


def test_fewer_images_than_a_batch_and_a_part_of_an_epoch():
    train, held_out = random_images(10), random_images(20, seed=1)
    for epochs in (0.01, 1, 2.5):
        assert 0 <= train_child(MIDDLE, Data(train, held_out, 10), Recipe(epochs=epochs), seed=0).accuracy <= 1


def test_a_diverged_child_has_an_accuracy():
    train, held_out = random_images(300), random_images(100, seed=1)
    trained = train_child(MIDDLE, Data(train, held_out, 10), Recipe(lr=1e30), seed=0)
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


def test_random_shift_moves_each_image_by_itself():
    pixels = torch.zeros(50, 2, 9, 9, dtype=torch.uint8)
    pixels[:, :, 4, 4] = 7
    moved = random_shift(pixels, 2, torch.Generator().manual_seed(0))
    assert moved.shape == pixels.shape and (moved.sum((1, 2, 3)) == 14).all()
    places = moved[:, 0].flatten(1).argmax(1)
    offsets = {(int(p) // 9 - 4, int(p) % 9 - 4) for p in places}
    assert len(offsets) > 15 and all(abs(o) <= 2 for pair in offsets for o in pair)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_training_on_the_gpu_learns_the_same():
    train, held_out = random_images(2000), random_images(500, seed=1)
    trained = train_child(MIDDLE, Data(train, held_out, 10), Recipe(), seed=0, device="cuda")
    assert next(trained.child.parameters()).is_cuda and trained.accuracy > 0.9
