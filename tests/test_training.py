"""The training of a child against a second implementation, written out formula by formula."""

from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

import model
from datasets import Data, Images
from model import (
    PAPER_RECIPE,
    Child,
    Muon,
    Recipe,
    make_optimizers,
    measure,
    normalize,
    one_cycle,
    orthogonalize,
    top_k_accuracy,
    train_child,
)
from search_space import parse_architecture

SMALL_NETWORK = parse_architecture("k3f8p1-k5f16p2")
PAPER_NETWORK = parse_architecture("c3x3f24s2x2-c1x3f36s1x2i1")


def noise(n: int, seed: int, classes: int = 7, size: int = 12) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 2, size, size), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.randint(classes, (n,), generator=generator))


DATA = Data(noise(43, 0), noise(700, 1), 7)


# --- the second implementation ------------------------------------------------------------------------------------


def newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    x = matrix / (matrix.norm() + 1e-7)
    for _ in range(3):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


class Adam:
    def __init__(self, lr: float, betas: tuple[float, float]) -> None:
        self.lr, (self.beta1, self.beta2), self.t = lr, betas, 0
        self.m = self.v = 0

    def step(self, p: torch.Tensor, grad: torch.Tensor, factor: float) -> torch.Tensor:
        self.t += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * grad
        self.v = self.beta2 * self.v + (1 - self.beta2) * grad**2
        m, v = self.m / (1 - self.beta1**self.t), self.v / (1 - self.beta2**self.t)
        return p - factor * self.lr * m / (v.sqrt() + 1e-8)


class OrthogonalMomentum:
    def __init__(self, lr: float, momentum: float) -> None:
        self.lr, self.momentum, self.average = lr, momentum, 0

    def step(self, p: torch.Tensor, grad: torch.Tensor, factor: float) -> torch.Tensor:
        self.average = self.momentum * self.average + (1 - self.momentum) * grad
        ahead = (self.momentum * self.average + (1 - self.momentum) * grad).flatten(1)
        scale = max(1, ahead.shape[0] / ahead.shape[1]) ** 0.5
        return p - factor * self.lr * scale * newton_schulz(ahead).view(p.shape)


class NesterovSGD:
    def __init__(self, lr: float, momentum: float, weight_decay: float) -> None:
        self.lr, self.momentum, self.weight_decay, self.velocity = lr, momentum, weight_decay, 0

    def step(self, p: torch.Tensor, grad: torch.Tensor, factor: float) -> torch.Tensor:
        grad = grad + self.weight_decay * p
        self.velocity = self.momentum * self.velocity + grad
        return p - factor * self.lr * (grad + self.momentum * self.velocity)


def shifted(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """The window of an image that begins so many pixels further down and right, zeros outside of it."""
    result = torch.zeros_like(image)
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            if 0 <= y + down < image.shape[1] and 0 <= x + right < image.shape[2]:
                result[:, y, x] = image[:, y + down, x + right]
    return result


def reference(architecture, data: Data, recipe: Recipe, seed: int) -> Child:
    """The child that `train_child` is to give."""
    torch.manual_seed(seed)
    child = Child(architecture, tuple(data.train.pixels.shape[1:]), data.num_classes)
    rules = {}
    for name, p in child.named_parameters():
        if recipe.optimizer == "sgd":
            rules[name] = NesterovSGD(recipe.lr, recipe.momentum, recipe.weight_decay)
        elif recipe.optimizer == "muon" and p.dim() == 4:
            rules[name] = OrthogonalMomentum(recipe.filter_lr, recipe.momentum)
        else:
            rules[name] = Adam(recipe.lr, recipe.betas)
    generator, n = torch.Generator().manual_seed(seed), len(data.train.labels)
    batch_size = min(recipe.batch_size, n)
    num_batches = n // batch_size  # the rest of an epoch is left out
    num_steps = max(1, round(recipe.epochs * num_batches))
    for step in range(num_steps):
        if step % num_batches == 0:
            order = torch.randperm(n, generator=generator)
        batch = order[step % num_batches * batch_size :][:batch_size]
        images, labels = data.train.pixels[batch], data.train.labels[batch]
        if recipe.shift:
            offsets = torch.randint(0, 2 * recipe.shift + 1, (2, batch_size, 1), generator=generator) - recipe.shift
            moves = offsets[:, :, 0].T.tolist()
            images = torch.stack([shifted(image, *move) for image, move in zip(images, moves, strict=True)])
        if recipe.flip:
            mirrored = torch.rand(batch_size, generator=generator) < 0.5
            images = torch.stack([i.flip(2) if m else i for i, m in zip(images, mirrored, strict=True)])
        log_p = child(images.float() / 127.5 - 1).log_softmax(1)
        picked = log_p[torch.arange(batch_size), labels]
        loss = -((1 - recipe.label_smoothing) * picked + recipe.label_smoothing * log_p.mean(1)).mean()
        progress, factor = (step + 0.5) / num_steps, 1.0
        if recipe.schedule == "one_cycle":
            factor = min(progress / recipe.warmup, (1 - progress) / (1 - recipe.warmup))
        grads = torch.autograd.grad(loss, list(child.parameters()))
        with torch.no_grad():
            for (name, p), grad in zip(child.named_parameters(), grads, strict=True):
                p.copy_(rules[name].step(p, grad, factor))
    return child.eval()


RECIPES = {
    "default": (SMALL_NETWORK, Recipe(batch_size=16, epochs=3.5)),  # two batches an epoch, seven steps
    "adam": (SMALL_NETWORK, Recipe(batch_size=16, epochs=3, optimizer="adam")),
    "augmented": (SMALL_NETWORK, Recipe(batch_size=16, epochs=2, shift=2, flip=True)),
    "less than a batch": (SMALL_NETWORK, Recipe(epochs=2)),
    "less than a step": (SMALL_NETWORK, Recipe(batch_size=16, epochs=0.01)),
    # A weight decay that is large enough to be seen.
    "paper": (PAPER_NETWORK, replace(PAPER_RECIPE, epochs=3, batch_size=16, weight_decay=0.05)),
}


@pytest.mark.parametrize("name", RECIPES)
def test_training_is_what_its_description_says(name):
    architecture, recipe = RECIPES[name]
    expected, trained = reference(architecture, DATA, recipe, 3), train_child(architecture, DATA, recipe, 3)
    for key, tensor in expected.state_dict().items():
        torch.testing.assert_close(trained.child.state_dict()[key], tensor, rtol=2e-3, atol=2e-4, msg=f"{name}: {key}")
    torch.manual_seed(3)
    first = Child(architecture, (2, 12, 12), 7)
    moved = max((a - b).abs().max() for a, b in zip(first.parameters(), expected.parameters(), strict=True))
    assert moved > 0.01 or "step" in name  # far more than the tolerance
    assert trained.seconds > 0
    assert not trained.child.training


def test_the_accuracy_is_that_of_the_held_out_images_in_evaluation_mode():
    recipe = replace(PAPER_RECIPE, epochs=3, batch_size=16, best_of=1)
    trained = train_child(PAPER_NETWORK, DATA, recipe, 3)
    with torch.no_grad():
        logits = trained.child(DATA.held_out.pixels.float() / 127.5 - 1)
    ranked = logits.argsort(1, descending=True)
    hits = ranked == DATA.held_out.labels[:, None]  # (700, 7)
    assert trained.accuracy == pytest.approx(hits[:, 0].double().mean().item(), abs=1.5 / 700)
    assert trained.top5_accuracy == pytest.approx(hits[:, :5].any(1).double().mean().item(), abs=1.5 / 700)
    assert trained.accuracy < trained.top5_accuracy < 1


def test_measuring_uses_running_statistics_and_leaves_the_child_in_training_mode():
    torch.manual_seed(0)
    child = Child(PAPER_NETWORK, (2, 12, 12), 7)
    child(normalize(DATA.train.pixels))  # moves the running statistics
    before = {name: tensor.clone() for name, tensor in child.state_dict().items()}
    measured = measure(child, DATA.held_out)
    assert child.training and all(torch.equal(before[name], t) for name, t in child.state_dict().items())
    child.eval()
    with torch.no_grad():
        logits = child(normalize(DATA.held_out.pixels))
    expected = [top_k_accuracy(logits, DATA.held_out.labels, k) for k in (1, 5)]
    assert list(measured) == pytest.approx(expected, abs=1.5 / 700)
    child.train()
    with torch.no_grad():
        other = child(normalize(DATA.held_out.pixels))
    assert (other.argmax(1) != logits.argmax(1)).sum() > 20  # batch statistics would have told


@pytest.mark.parametrize("best_of, expected", [(1, 4), (2, 4), (3, 2)])
def test_the_accuracy_is_the_best_after_each_of_the_last_epochs(monkeypatch, best_of, expected):
    accuracies, measured = [(0.1, 0.2), (0.9, 0.9), (0.2, 0.3), (0.5, 0.6)], []

    def note(child, images):
        assert images.pixels is DATA.held_out.pixels
        measured.append(len(measured))
        return accuracies[4 - best_of + len(measured) - 1]

    monkeypatch.setattr(model, "measure", note)
    trained = train_child(SMALL_NETWORK, DATA, Recipe(batch_size=16, epochs=4, best_of=best_of), 0)
    assert (trained.accuracy, trained.top5_accuracy) == accuracies[expected - 1] and len(measured) == best_of


def test_progress_has_the_images_seen_and_the_running_accuracy_and_changes_nothing():
    progress, recipe = torch.zeros(2, 2, dtype=torch.float64), Recipe(batch_size=16, epochs=30)
    watched = train_child(SMALL_NETWORK, DATA, recipe, 0, progress[1])
    assert progress[:, 0].tolist() == [0, 60 * 16]
    assert progress[0, 1] == 0 and 0.4 < progress[1, 1] < 1  # it learns these few images by heart; chance is 1/7
    alone = train_child(SMALL_NETWORK, DATA, recipe, 0)
    weights = (trained.child.state_dict().values() for trained in (watched, alone))
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True)) and watched[1:3] == alone[1:3]


# --- its parts ----------------------------------------------------------------------------------------------------


def test_the_recipes_are_those_of_the_results():
    """A change here makes every committed number another one."""
    assert asdict(Recipe()) == {
        "epochs": 0.2, "batch_size": 64, "optimizer": "muon", "lr": 0.006, "filter_lr": 0.03, "betas": (0.8, 0.95),
        "momentum": 0.9, "weight_decay": 0.0, "schedule": "one_cycle", "warmup": 0.2, "label_smoothing": 0.1,
        "shift": 0, "flip": False, "best_of": 1, "precision": "float32",
    }  # fmt: skip
    assert asdict(PAPER_RECIPE) == asdict(Recipe()) | {
        "epochs": 50, "batch_size": 128, "optimizer": "sgd", "lr": 0.1, "weight_decay": 1e-4, "schedule": "constant",
        "label_smoothing": 0, "shift": 4, "flip": True, "best_of": 5,
    }  # fmt: skip


def test_one_cycle_rises_to_the_peak_and_falls_to_zero():
    values = [one_cycle(progress, 0.2) for progress in (0.0, 0.05, 0.1, 0.2, 0.6, 0.9, 1.0)]
    assert values == pytest.approx([0, 0.25, 0.5, 1, 0.5, 0.125, 0])


def test_pixels_are_scaled_to_minus_one_to_one():
    pixels = torch.tensor([0, 51, 102, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    normal = normalize(pixels)
    assert normal.dtype == torch.float32 and normal.flatten().tolist() == pytest.approx([-1, -0.6, -0.2, 1])
    assert normalize(DATA.train.pixels).is_contiguous(memory_format=torch.channels_last)


def test_each_optimizer_gets_its_parameters():
    child = Child(SMALL_NETWORK, (2, 12, 12), 7)
    adam, muon = make_optimizers(child, Recipe())
    filters = [id(conv.weight) for conv in child.convs]
    assert type(muon) is Muon and [id(p) for p in muon.param_groups[0]["params"]] == filters
    others = {id(p) for p in adam.param_groups[0]["params"]}
    assert type(adam) is torch.optim.Adam and others == {id(p) for p in child.parameters()} - set(filters)
    assert adam.defaults["betas"] == (0.8, 0.95) and adam.defaults["lr"] == 0.006
    assert muon.defaults == {"lr": 0.03, "momentum": 0.9}
    (adam,) = make_optimizers(child, Recipe(optimizer="adam"))
    assert len(adam.param_groups[0]["params"]) == len(list(child.parameters()))


@pytest.mark.parametrize("shape", [(8, 18), (18, 8), (5, 5)])
def test_orthogonalize_is_three_newton_schulz_steps(shape):
    matrix = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = newton_schulz(matrix) if shape[0] <= shape[1] else newton_schulz(matrix.T).T
    torch.testing.assert_close(orthogonalize(matrix), expected, rtol=1e-10, atol=1e-12)
    assert orthogonalize(torch.zeros(3, 4)).abs().max() == 0  # no division by zero


def test_batch_norm_pooling_and_relu_stand_where_the_description_says():
    torch.manual_seed(0)
    child = Child(parse_architecture("k3f8p0-k3f8p1-k3f8p1-k3f8p1"), (1, 20, 20), 5)
    assert child.pooled == [{1}, {2}, set(), set()]  # 18 -> 9 -> 4; below 8 no more
    x = torch.randn(2, 1, 20, 20)
    y = x
    for i, (conv, norm) in enumerate(zip(child.convs, child.norms, strict=True)):
        torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)  # negative ones tell the order, too
        y = F.conv2d(y, conv.weight, padding=0 if i == 0 else 1)
        y = F.max_pool2d(y, 2) if i < 2 else y
        y = (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        y = F.relu(y * norm.weight[:, None, None] + norm.bias[:, None, None])
    y = F.relu(child.hidden(y.permute(0, 2, 3, 1).flatten(1)))
    torch.testing.assert_close(child(x), child.classifier(y), rtol=1e-4, atol=1e-5)
    assert (child.hidden.in_features, child.hidden.out_features) == (8 * 4 * 4, 84)
