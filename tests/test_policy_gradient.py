"""REINFORCE against exact gradients, and the search loop against its contract."""

import copy
import csv
import itertools
import json
import math
import os
import re
import subprocess
import sys
from collections import deque
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import torch

from controller import ANCHOR, Controller
from policy_gradient import Batch, PolicyGradient
from search_space import SmallSpace

ROOT = Path(__file__).parent.parent

NUM_CHOICES = (3, 2, 3)
SEQUENCES = list(itertools.product(*map(range, NUM_CHOICES)))  # all 18
ALL_ACTIONS = torch.tensor(SEQUENCES)  # (18, 3)


def tiny(num_choices=NUM_CHOICES, seed=0, **kwargs) -> Controller:
    torch.manual_seed(seed)
    return Controller(num_choices, hidden_size=8, **kwargs)


def gradient(controller: Controller, value: torch.Tensor) -> torch.Tensor:
    gradients = torch.autograd.grad(value, list(controller.parameters()), materialize_grads=True)
    return torch.cat([g.flatten() for g in gradients])


def far_from_uniform(num_choices=NUM_CHOICES) -> Controller:
    controller = tiny(num_choices).double()
    for parameter in controller.parameters():
        torch.nn.init.normal_(parameter)
    return controller


# --- the update ---------------------------------------------------------------------------------------------------


def loss_of(search: PolicyGradient, sequences: list, advantage, weight=None, bonus: float = 0.0) -> torch.Tensor:
    """The loss of these children with these advantages, all alike unless weights are given."""
    log_prob, entropy = search.score(sequences)
    weight = torch.full_like(log_prob, 1 / len(sequences)) if weight is None else weight
    return search.loss(torch.as_tensor(advantage, dtype=torch.float64), weight, log_prob, entropy, bonus)


@pytest.mark.parametrize("num_choices", [NUM_CHOICES, (3, ANCHOR, 2, ANCHOR, 2, ANCHOR)], ids=["tokens", "anchors"])
@pytest.mark.parametrize("baseline", [0.0, 0.7, -20.0])
def test_expected_reinforce_gradient_is_the_gradient_of_the_exact_expected_reward(baseline, num_choices):
    """Averaged over all sequences, weighted by their probabilities; a baseline changes nothing in expectation."""
    controller = far_from_uniform(num_choices)
    sequences = torch.tensor(list(itertools.product(*map(range, controller.token_choices()))))
    rewards = torch.linspace(-1, 2, len(sequences), dtype=torch.float64).sin() * 3
    probability = controller(sequences).log_prob.sum(1).exp()
    exact = gradient(controller, -(probability * rewards).sum())

    search = PolicyGradient(controller)
    expected = torch.zeros_like(exact)
    for actions, reward, p in zip(map(tuple, sequences.tolist()), rewards, probability.tolist(), strict=True):
        expected += p * gradient(controller, loss_of(search, [actions], [reward - baseline]))
    assert exact.norm() > 0.1
    torch.testing.assert_close(expected, exact, rtol=1e-10, atol=1e-12)


def test_remembered_children_count_by_truncated_importance_weights():
    """min(1, pi / pi_then), as a share of all: what has become likelier counts no more than what has stayed."""
    newer, older = far_from_uniform(), tiny()  # the older one is nearly uniform
    log_prob, then = newer(ALL_ACTIONS).log_prob.sum(1).detach(), older(ALL_ACTIONS).log_prob.sum(1).tolist()
    search = PolicyGradient(newer)
    search.sampled = dict(zip(SEQUENCES, then, strict=True))
    ratio = [min(1.0, math.exp(now) / math.exp(was)) for now, was in zip(log_prob.tolist(), then, strict=True)]
    assert 3 < ratio.count(1.0) < 15
    expected = torch.tensor([r / sum(ratio) for r in ratio], dtype=torch.float64)
    torch.testing.assert_close(search.weight(SEQUENCES, log_prob), expected)
    search.replay = 0
    torch.testing.assert_close(search.weight(SEQUENCES, log_prob), torch.full_like(log_prob, 1 / 18))


def test_weights_are_no_part_of_the_gradient():
    search = PolicyGradient(far_from_uniform())
    batch = search.ask()
    with pytest.MonkeyPatch.context() as patch:
        seen, original = [], PolicyGradient.weight
        patch.setattr(PolicyGradient, "weight", lambda *args: seen.append(original(*args)) or seen[0])
        search.tell(batch, [0.1, 0.2])
    assert not seen[0].requires_grad


def test_expected_bonus_is_the_exact_entropy():
    controller = far_from_uniform()
    log_prob = controller(ALL_ACTIONS).log_prob.sum(1)
    exact = -(log_prob.exp() * log_prob).sum().item()
    search = PolicyGradient(controller)
    losses = [loss_of(search, [actions], [0.0], bonus=0.3).item() for actions in SEQUENCES]
    expected = sum(p * loss for p, loss in zip(log_prob.exp().tolist(), losses, strict=True))
    assert expected == pytest.approx(-0.3 * exact, abs=1e-12)


def test_the_bonus_has_the_gradient_of_the_steps_entropies_at_fixed_prefixes():
    """The exact gradient of the entropy has a second term, for how weight shifts between prefixes: left out."""
    controller = far_from_uniform()
    rollout = controller(ALL_ACTIONS)
    probability = rollout.log_prob.sum(1).exp()
    at_fixed_prefixes = gradient(controller, -(probability.detach() * rollout.entropy.sum(1)).sum())
    rollout = controller(ALL_ACTIONS)
    exact = gradient(controller, (rollout.log_prob.sum(1).exp() * rollout.log_prob.sum(1)).sum())
    search = PolicyGradient(controller)
    expected = torch.zeros_like(exact)
    for actions, p in zip(SEQUENCES, probability.tolist(), strict=True):
        expected += p * gradient(controller, loss_of(search, [actions], [0.0], bonus=1.0))
    torch.testing.assert_close(expected, at_fixed_prefixes)
    assert 0.5 < torch.cosine_similarity(expected, exact, dim=0) < 0.999


@pytest.mark.parametrize(
    "scale, unit, spread", [("none", 1, 0.05**0.5), ("none", 50, 50 * 0.05**0.5), ("rank", 1, (5 / 16) ** 0.5)]
)
def test_the_bonus_is_weighted_by_the_spread_of_the_rewards(scale, unit, spread):
    """The standard deviation, so that a weight means the same on any scale; ranks are -3/4, -1/4, 1/4, 3/4."""
    search, seen = PolicyGradient(tiny(), reward_scale=scale, entropy_weight=0.3), []
    search.loss = lambda *args: seen.append(args) or PolicyGradient.loss(search, *args)
    tell(search, ALL_ACTIONS[:4], [unit * reward for reward in (0.2, 0.4, 0.6, 0.8)])
    assert seen[0][4].item() == pytest.approx(0.3 * spread)


def test_rewards_without_ranks_are_learned_too():
    """With the default bonus: until the spread was taken into account, this was random search."""
    controller = tiny((4,) * 5)
    search = PolicyGradient(controller, reward_scale="none")
    list(search.search(lambda actions: sum(a == 2 for a in actions) / 1000 - 0.001, 150))
    sampled = controller(num_samples=400, generator=torch.Generator().manual_seed(0)).actions
    assert (sampled == 2).double().mean().item() > 0.4


def tell(search: PolicyGradient, actions: torch.Tensor, rewards: list[float]) -> dict:
    """An update with these actions, whatever the policy samples."""
    samples = list(map(tuple, actions.tolist()))
    new = [sequence for sequence in dict.fromkeys(samples) if sequence not in search.sampled]
    log_prob = search.controller(actions).log_prob.sum(1).tolist()
    search.sampled |= {sequence: log_prob[samples.index(sequence)] for sequence in new}
    search.out.append(Batch(samples, new))
    return search.tell(new, [rewards[samples.index(sequence)] for sequence in new])


def advantages(search: PolicyGradient, places: list[int], rewards: list[float]) -> tuple[list[float], float]:
    """R - b of a batch that is told, and b, on the scale of the gradient."""
    found = []
    original = PolicyGradient.advantage
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PolicyGradient, "advantage", lambda *args: found.append((original(*args), args)) or found[0][0])
        metrics = tell(search, ALL_ACTIONS[places], rewards)
    (advantage, baseline), (_, rows, _, _, scaled) = found[0]
    assert metrics["baseline"] == baseline
    b = scaled[rows] - advantage
    torch.testing.assert_close(b, b[:1].expand(len(b)))  # the same for all
    return advantage.tolist(), b[0].item()


def ranks(rewards: list[float], children: list[float]) -> list[float]:
    """Of each reward among the children's: how many more are worse than better, as a share of all."""
    return [
        (sum(child < reward for child in children) - sum(child > reward for child in children)) / len(children)
        for reward in rewards
    ]


def floored(rewards: list[float], children: list[float]) -> list[float]:
    """The rewards as they are, what failed as the worst that did not; 0 where all failed."""
    worst = min((child for child in children if child > -math.inf), default=0.0)
    return [worst if reward == -math.inf else reward for reward in rewards]


def graded(actions: tuple[int, ...]) -> float:
    """A reward with ties; a sum of 4 fails."""
    return -math.inf if sum(actions) == 4 else sum(actions) ** 2 / 7 - 1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"reward_scale": "none"},
        {"replay": 0, "children_per_update": 5},
        {"replay": 0, "reward_scale": "none", "update_lag": 2, "children_per_update": 4},
        {"replay": 5, "lr": 0.1, "children_per_update": 3},
        {"lr": 0.05, "entropy_weight": 1.1, "baseline_decay": 0.9, "update_lag": 0, "replay": 7},
        {"children_per_update": 3, "num_choices": (3, ANCHOR, 2, ANCHOR, 2, ANCHOR, 2), "num_layers": 2, "seed": 3},
    ],
    ids=str,
)
def test_updates_are_those_of_the_formulas(settings):
    """Six updates recomputed: ranks by counting, the average by its definition, the loss by autograd, Adam by hand."""
    settings = dict(settings)
    num_choices, num_layers = settings.pop("num_choices", NUM_CHOICES), settings.pop("num_layers", 1)
    controller = tiny(num_choices, num_layers=num_layers)
    for parameter in controller.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    search = PolicyGradient(controller, **settings)
    m, lag = settings.get("children_per_update", 2), settings.get("update_lag", 4)
    lr, beta1, beta2, replay = settings.get("lr", 0.02), 0.9, 0.999, settings.get("replay", 1000)
    bonus, decay = settings.get("entropy_weight", 0.22), settings.get("baseline_decay", 0.5)

    expected = copy.deepcopy(controller)
    parameters = list(expected.parameters())
    moments = [[torch.zeros_like(p), torch.zeros_like(p)] for p in parameters]
    generator = torch.Generator().manual_seed(settings.get("seed", 0))
    out, then, reward_of, earlier, truncated, told = [], {}, {}, [], [], 0
    for update in range(6):
        while len(out) <= lag and len(then) + m < 18:
            known = torch.tensor(list(then)[-replay:]) if replay and then else None
            with torch.no_grad():
                actions, log_prob, _ = expected(None, m, generator, known=known)
            samples = list(map(tuple, actions.tolist()))
            new = [s for s in dict.fromkeys(samples) if s not in then]
            assert search.ask() == new and search.out[-1] == (samples, new)
            then |= {s: log_prob[samples.index(s)].sum().item() for s in new}
            assert search.sampled == pytest.approx(then, abs=1e-12) and list(search.sampled) == list(then)
            out.append((samples, new))
        samples, new = out.pop(0)
        metrics = search.tell(new, [graded(s) for s in new])
        reward_of |= {s: graded(s) for s in new}
        told += len(samples)
        assert search.reward_of == reward_of

        children = list(reward_of)[-replay:] if replay else samples
        _, log_prob, entropy = expected(torch.tensor(children))
        ratios = [math.exp(log_prob[i].sum().item() - then[child]) for i, child in enumerate(children)]
        truncated += [ratio > 1 for ratio in ratios]
        weights = [min(1.0, ratio) if replay else 1.0 for ratio in ratios]
        weights = [weight / sum(weights) for weight in weights]

        def average(which, decay=decay, earlier=earlier):  # of the earlier updates' weighted means, the newest counts 1
            factors = [decay ** (len(earlier) - 1 - e) for e in range(len(earlier))]
            means = [sum(w * which[child] for child, w in weighted) for weighted in earlier]
            return sum(f * mean for f, mean in zip(factors, means, strict=True)) / sum(factors)

        everything = list(reward_of.values())
        raw = dict(zip(reward_of, floored(everything, everything), strict=True))
        scale = floored if settings.get("reward_scale") == "none" else ranks
        scaled = dict(zip(reward_of, scale(everything, everything), strict=True))
        b = average(scaled) if update else 0.0
        first = sum(raw.values()) / len(raw) if scale is ranks else 0.0
        middle = sum(scaled.values()) / len(scaled)
        spread = (sum((value - middle) ** 2 for value in scaled.values()) / len(scaled)) ** 0.5

        loss = mean_entropy = 0
        for i, child in enumerate(children):
            loss = loss - weights[i] * (scaled[child] - b) * log_prob[i].sum()
            mean_entropy = mean_entropy + weights[i] * entropy[i].sum()
        loss = loss - bonus * spread * mean_entropy
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        with torch.no_grad():
            for p, g, moment in zip(parameters, gradients, moments, strict=True):
                moment[0] = beta1 * moment[0] + (1 - beta1) * g
                moment[1] = beta2 * moment[1] + (1 - beta2) * g**2
                one, two = moment[0] / (1 - beta1 ** (update + 1)), moment[1] / (1 - beta2 ** (update + 1))
                p -= lr / (math.sqrt(1 + told / 10) if replay else 1) * one / (two.sqrt() + 1e-8)

        torch.testing.assert_close(list(controller.parameters()), parameters, rtol=0, atol=1e-9)
        assert metrics == {
            "update": update,
            "samples": told,
            "children": len(reward_of),
            "reward": pytest.approx(sum(raw[s] for s in samples) / len(samples), abs=1e-9),
            "policy_reward": pytest.approx(sum(w * raw[c] for w, c in zip(weights, children, strict=True)), abs=1e-9),
            "best_reward": max(everything),
            "baseline": pytest.approx(average(raw) if update else first, abs=1e-9),
            "entropy": pytest.approx(mean_entropy.item(), abs=1e-9),
            "loss": pytest.approx(loss.item(), abs=1e-9),
        }
        earlier.append(list(zip(children, weights, strict=True)))
    assert -math.inf in reward_of.values() and len(set(reward_of.values())) > 3
    assert 0 < sum(truncated) < len(truncated) and search.updates == 6 and search.samples == told
    assert replay or told > len(reward_of)  # without replay, what is known is sampled again


def test_settings_unless_told_otherwise():
    """Also in the README and in train.py, whose flags say the same."""
    settings = {field.name: field.default for field in fields(PolicyGradient)}
    assert settings.pop("controller") is MISSING
    assert settings == {
        **{"children_per_update": 2, "update_lag": 4, "lr": 0.02, "entropy_weight": 0.22, "baseline_decay": 0.5},
        **{"reward_scale": "rank", "replay": 1000, "patience": 200, "num_steps": None, "allowed": None, "seed": 0},
    }
    with pytest.raises(TypeError, match="positional"):
        PolicyGradient(tiny(), 5)
    assert len({PolicyGradient(tiny()), PolicyGradient(tiny())}) == 2  # a search is itself, not its settings


def test_a_search_starts_from_nothing():
    search = PolicyGradient(tiny())
    assert (search.batches, search.batches_without_new, search.updates, search.samples) == (0, 0, 0, 0)
    assert search.steps is None and search.stopped_early is None and not search.known
    assert not (search.sampled or search.out or search.reward_of or len(search.average))


def test_rewards_without_ranks_are_kept_in_float64():
    search = PolicyGradient(tiny(), reward_scale="none")
    advantage, b = advantages(search, [0, 1], [1e8, 1e8 + 1])
    assert advantage == [1e8, 1e8 + 1] and b == 0
    search = PolicyGradient(tiny(), reward_scale="none", baseline_decay=0.1, replay=0)
    for place, reward in enumerate([1.0, 2.0, 4.0]):
        _, b = advantages(search, [place], [reward])
    assert b == pytest.approx(2.1 / 1.1, abs=1e-14)


@pytest.mark.parametrize("replay", [0, 1000])
def test_a_first_batch_that_failed_as_a_whole_teaches_nothing_but_what_is_better(replay):
    search = PolicyGradient(tiny(), reward_scale="none", replay=replay)
    advantage, b = advantages(search, [0, 1], [-math.inf, -math.inf])
    assert advantage == [0, 0] and b == 0
    advantage, b = advantages(search, [2, 3], [0.5, 1.5])
    assert advantage[-2:] == [0, 1] and b == 0.5  # what failed now counts as the worst there is


@pytest.mark.parametrize("replay", [0, 1000])
def test_update_raises_the_probability_of_the_better_child(replay):
    controller = tiny()
    search = PolicyGradient(controller, entropy_weight=0.0, replay=replay)
    good, bad = ALL_ACTIONS[3:4], ALL_ACTIONS[14:15]
    before = (controller(good).log_prob.sum() - controller(bad).log_prob.sum()).item()
    tell(search, torch.cat([good, bad]), [0.99, 0.98])
    assert (controller(good).log_prob.sum() - controller(bad).log_prob.sum()).item() > before


@pytest.mark.parametrize("decay", [0.8, 0.0, 1e-50, 1.0])
def test_the_baseline_is_read_before_the_batch_enters_it(decay):
    search = PolicyGradient(tiny(), baseline_decay=decay, reward_scale="none", replay=0)
    first, second, third = [1.0, 3.0], [5.0, 5.0], [0.5, 2.0]
    advantage, b = advantages(search, [0, 1], first)
    assert b == 0 and advantage == first  # nothing came before
    advantage, b = advantages(search, [2, 3], second)
    assert b == pytest.approx(2) and advantage == pytest.approx([3, 3])
    advantage, b = advantages(search, [4, 5], third)
    assert b == pytest.approx((decay * 2 + 5) / (decay + 1))  # earlier weights decay with each batch
    assert advantage == pytest.approx([reward - b for reward in third])


@pytest.mark.parametrize("exponent", [1, 3])
def test_ranks_come_from_the_children_met_so_far(exponent):
    """Worked out by hand; a monotone transformation of the reward such as the paper's cube changes nothing."""
    search = PolicyGradient(tiny(), baseline_decay=0.5, replay=0)
    advantage, b = advantages(search, [0, 1], [0.5**exponent, 0.7**exponent])
    assert b == 0 and advantage == pytest.approx([-1 / 2, 1 / 2])
    # the second is sampled again, and counts once among 0.5, 0.6, 0.7: ranks -2/3, 0, 2/3
    advantage, b = advantages(search, [1, 2], [0.7**exponent, 0.6**exponent])
    assert b == pytest.approx(0)  # the mean of the ranks, as they are now, of 0.5 and 0.7
    assert advantage == pytest.approx([2 / 3, 0])
    # among 0.5, 0.6, 0.7, 0.9: ranks -3/4, -1/4, 1/4, 3/4
    advantage, b = advantages(search, [3], [0.9**exponent])
    assert b == pytest.approx((0.25 * (-3 / 4 + 1 / 4) + 0.5 * (1 / 4 - 1 / 4)) / 1.5)
    assert advantage == pytest.approx([3 / 4 - b])


def test_ranks_tell_apart_what_float32_does_not():
    advantage, _ = advantages(PolicyGradient(tiny()), [0, 1, 2], [1e8, 1e8 + 1, 1e8 + 2])
    assert advantage == pytest.approx([-2 / 3, 0, 2 / 3])


# --- the search ---------------------------------------------------------------------------------------------------


def test_a_toy_reward_is_learned_clearly_better_than_chance():
    """Reward: the share of tokens equal to 2; a uniform policy has 1/4 of them, over four seeds."""

    def share(actions):
        return sum(a == 2 for a in actions) / len(actions)

    shares = []
    for seed in range(4):
        torch.manual_seed(seed)
        controller = Controller([4] * 6)
        list(PolicyGradient(controller, seed=seed).search(share, num_children=150))
        sampled = controller(num_samples=200, generator=torch.Generator().manual_seed(0)).actions
        shares.append((sampled == 2).double().mean().item())
    assert min(shares) > 0.35 and sum(shares) / 4 > 0.45


def record_search(num_children=40, seed=0, num_choices=(4, 4, 4), evaluate=None, **settings):
    calls = []

    def call(actions):
        calls.append(actions)
        return evaluate(actions) if evaluate else sum(actions) / 9

    policy_gradient = PolicyGradient(tiny(num_choices), seed=seed, **settings)
    return calls, list(policy_gradient.search(call, num_children)), policy_gradient


@pytest.mark.parametrize("replay", [0, 10])
@pytest.mark.parametrize("update_lag", [0, 1, 3])
@pytest.mark.parametrize("num_children", [1, 7, 40])
def test_duplicates_are_evaluated_once_and_the_budget_is_met_exactly(num_children, update_lag, replay):
    calls, metrics, policy_gradient = record_search(num_children, update_lag=update_lag, replay=replay)
    assert len(calls) == len(set(calls)) == num_children == metrics[-1]["children"]
    assert metrics[-1]["samples"] == policy_gradient.samples >= num_children
    assert policy_gradient.stopped_early is None


def test_the_same_seed_walks_the_same_path_and_another_does_not():
    paths = [record_search(seed=seed)[0] for seed in (0, 0, 1)]
    assert paths[0] == paths[1] != paths[2]


def test_a_larger_budget_walks_the_same_path_further():
    assert record_search(40)[0][:17] == record_search(17)[0]


def test_a_batch_is_cut_where_the_budget_is_spent():
    """Of five samples, those up to the last new one that may still be evaluated."""
    whole, cut = (PolicyGradient(tiny((4, 4, 4)), children_per_update=5) for _ in range(2))
    batch = whole.ask(num_children=5)
    assert len(batch) == 5 and cut.ask(num_children=3) == batch[:3]
    assert cut.sampled == {actions: whole.sampled[actions] for actions in batch[:3]}
    assert cut.out == deque([(batch[:3], batch[:3])])
    assert cut.done(3) and not cut.done(4)
    metrics = cut.tell(batch[:3], [0.1, 0.2, 0.3])
    assert metrics["samples"] == 3 and cut.batches == 1


@pytest.mark.parametrize("replay", [1000, 0])
def test_what_is_not_allowed_costs_nothing_and_counts_as_failed(replay):
    """The same walk as where it is evaluated, and fails."""

    def allowed(actions):
        return sum(actions) % 3 > 0

    settings = {"children_per_update": 3, "seed": 4, "replay": replay}
    free, limited = (PolicyGradient(tiny((4, 4, 4)), **settings, allowed=some) for some in (None, allowed))
    evaluated = []
    for metrics in limited.search(lambda actions: evaluated.append(actions) or sum(actions), 15):
        assert metrics["children"] == len(limited.reward_of.keys() - limited.refused)
    walk = free.search(lambda actions: sum(actions) if allowed(actions) else -math.inf, 10**6)
    for _ in range(limited.updates):
        next(walk)
    assert len(evaluated) == 15 == limited.children and all(map(allowed, evaluated))
    assert limited.refused and not any(map(allowed, limited.refused)) and allowed(limited.best[0])
    assert limited.reward_of.items() <= free.reward_of.items()
    told = limited.reward_of
    assert {s: limited.sampled[s] for s in told} == pytest.approx({s: free.sampled[s] for s in told}, abs=1e-12)


def test_a_limit_that_nothing_meets_ends_the_search():
    search = PolicyGradient(tiny((2, 2)), allowed=lambda actions: False)
    assert list(search.search(lambda actions: 1 / 0, 5)) and search.children == 0
    assert "exhausted" in search.stopped_early and "4 are not allowed" in search.stopped_early
    search = PolicyGradient(tiny((4, 4, 4)), allowed=lambda actions: False, patience=5)
    assert list(search.search(lambda actions: 1 / 0, 5)) and "nothing that is allowed" in search.stopped_early


def test_batches_without_anything_new_are_counted():
    search = PolicyGradient(tiny((1, 2)), children_per_update=5, replay=0)
    with torch.no_grad():
        search.controller.heads["step_1"].bias[1] = 100.0
    counts = []
    for _ in range(3):
        search.ask()
        counts.append((search.batches, search.batches_without_new))
    assert counts == [(1, 0), (2, 1), (3, 2)]
    with torch.no_grad():
        search.controller.heads["step_1"].bias[0] = 200.0
    assert search.ask() == [(0, 0)] and search.batches_without_new == 0


def test_rewards_are_kept_as_floats_and_in_the_order_in_which_they_came():
    search = PolicyGradient(tiny((20, 20, 20)), children_per_update=5)
    batch = search.ask()
    search.tell(batch, torch.arange(5))
    assert list(search.reward_of.items()) == [(actions, float(i)) for i, actions in enumerate(batch)]
    assert {type(reward) for reward in search.reward_of.values()} == {float}


def test_why_a_search_ended_is_said():
    _, _, search = record_search(1000, num_choices=(2, 3))
    assert search.stopped_early == "the space is exhausted: all 6 architectures were evaluated" and search.done(1000)
    search = PolicyGradient(tiny((4, 4, 4)), patience=2)
    search.batches_without_new = 1
    assert search.stopped_early is None and not search.done(1)
    search.batches_without_new = 2
    assert search.done(1)
    assert search.stopped_early == "the policy has collapsed: 2 updates in a row sampled nothing new"


@pytest.mark.parametrize(
    "update_lag, order", [(0, "ATATATAT"), (1, "AATATATT"), (2, "AAATATTT"), (3, "AAAATTTT"), (9, "AAAATTTT")]
)
def test_a_batch_is_sampled_from_the_policy_update_lag_updates_back(update_lag, order):
    """With lag L, L + 1 batches are asked for before the first is told, and one more after each update."""
    events, told = [], []

    class FourBatches(PolicyGradient):
        def ask(self, num_children=None):
            assert num_children == 8 and events.count("A") < 4
            events.append("A")
            return [(events.count("A"), choice) for choice in range(2)]

        def done(self, num_children):
            return 2 * events.count("A") >= num_children

        def tell(self, batch, rewards):
            events.append("T")
            told.append((batch, rewards))
            return {"update": events.count("T") - 1}

    search = FourBatches(tiny(), update_lag=update_lag).search(lambda actions: 10 * actions[0] + actions[1], 8)
    for update, metrics in enumerate(search):
        assert metrics == {"update": update}
        assert "".join(events) == order[: len(events)]
    assert "".join(events) == order
    assert told == [([(n, 0), (n, 1)], [10 * n, 10 * n + 1]) for n in (1, 2, 3, 4)]


def test_asking_and_telling_by_hand_is_the_same_search():
    """Batches evaluated in parallel, whatever their order, are told in the order in which they were asked for."""
    by_search, metrics, _ = record_search(update_lag=2)
    search, out, asked, told = PolicyGradient(tiny((4, 4, 4)), update_lag=2), [], [], []
    while out or not search.done(40):
        while len(out) < 3 and not search.done(40):
            out.append(search.ask(40))
            asked += out[-1]
        batch = out.pop(0)
        told.append(search.tell(batch, [sum(actions) / 9 for actions in batch]))
    assert asked == by_search and told == metrics


def test_only_the_oldest_batch_can_be_told_with_all_its_rewards():
    search = PolicyGradient(tiny((20, 20, 20)), children_per_update=5)
    message = "tell() takes the oldest batch that was asked for and not told, and all its rewards"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        search.tell([], [])
    first, second = search.ask(), search.ask()
    for batch, rewards in ((second, [0.5] * 5), (first, [0.5] * 4), (first, [0.5] * 6), (first[:4], [0.5] * 4)):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            search.tell(batch, rewards)
    assert len(search.out) == 2 and not search.reward_of
    search.tell([list(actions) for actions in first], torch.ones(5))
    search.tell(second, [0.5] * 5)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        search.tell(second, [0.5] * 5)


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_refused_and_changes_nothing(reward):
    search = PolicyGradient(tiny())
    batch = search.ask()
    rewards = [0.5] * (len(batch) - 1) + [reward]
    message = f"rewards must be numbers, or -inf for what failed, not {rewards}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        search.tell(batch, rewards)
    assert search.updates == 0 and not search.reward_of
    search.tell(batch, [0.5] * len(batch))


@pytest.mark.parametrize("scale", ["rank", "none"])
def test_what_failed_is_avoided(scale):
    """Choice 0 of the first step fails, with -inf; the policy learns to do without it."""
    controller = tiny((4, 4, 4))
    search = PolicyGradient(controller, reward_scale=scale, lr=0.05)
    metrics = list(search.search(lambda actions: -math.inf if actions[0] == 0 else 0.5 + sum(actions) / 90, 50))
    assert all(math.isfinite(update["loss"]) for update in metrics)
    first = controller(torch.tensor([[0, 0, 0]])).log_prob[0, 0].exp().item()
    assert first < 0.15 and search.best[0][0] != 0 and math.isfinite(search.best[1])


def test_the_best_is_the_earliest_of_equals():
    search = PolicyGradient(tiny((20, 20, 20)), children_per_update=5)
    batch = search.ask()
    search.tell(batch, [0.1, 0.7, 0.3, 0.7, 0.2])
    assert search.best == (batch[1], 0.7)


def test_the_default_search_walks_as_it_was_recorded():
    """The default searches on the table of MNIST, a column a seed: shows any change of the walk that was not meant."""
    table = list(csv.DictReader((ROOT / "results" / "mnist_space.csv").open()))
    recorded = [line.split() for line in (ROOT / "tests" / "recorded_walk.txt").read_text().splitlines()]
    space = SmallSpace()
    for seed, expected in enumerate(zip(*recorded, strict=True)):
        torch.manual_seed(seed)
        controller = Controller(space.num_choices, space.names)
        rewards = {row["architecture"]: float(row[f"val_{seed}"]) for row in table}
        walk = []

        def evaluate(actions, walk=walk, rewards=rewards):
            walk.append(str(space.decode(actions)))
            return rewards[walk[-1]]

        list(PolicyGradient(controller, seed=seed).search(evaluate, 120))
        assert walk == list(expected)


def test_an_exhausted_space_ends_the_search():
    calls, metrics, policy_gradient = record_search(1000, num_choices=(2, 3))
    assert len(calls) == 6 and "exhausted" in policy_gradient.stopped_early
    assert math.isfinite(metrics[-1]["loss"])


def test_who_asks_on_in_an_exhausted_space_gets_nothing_new():
    _, _, search = record_search(1000, num_choices=(2, 3))
    assert search.exhausted and search.ask() == [] and len(search.out[-1].samples) == 2
    assert math.isfinite(search.tell([], [])["loss"])


def test_a_space_that_has_yet_to_grow_is_not_exhausted():
    """4 of 2 x 2 sequences have been sampled, but two of them are shallow ones."""
    search = PolicyGradient(tiny((2, 2)), num_steps=lambda children: 1 if children < 2 else 2, patience=1000)
    list(search.search(sum, 100))
    lengths = [len(actions) for actions in search.sampled]
    assert lengths.count(1) == 2 and lengths.count(2) == 4 and "all 6" in search.stopped_early


def test_a_collapsed_policy_ends_the_search():
    policy_gradient = PolicyGradient(certain(), lr=0.0, patience=30, replay=0, children_per_update=5)
    metrics = list(policy_gradient.search(lambda _: 0.9, 1000))
    assert len(policy_gradient.sampled) == 1 and len(metrics) == 31
    assert "collapsed" in policy_gradient.stopped_early


def certain() -> Controller:
    """Always samples 0, 0, 0."""
    controller = tiny((4, 4, 4))
    with torch.no_grad():
        for head in controller.heads.values():
            head.bias[0] = 100.0
    return controller


def test_with_replay_the_narrowest_policy_finds_every_sequence():
    search = PolicyGradient(certain(), lr=0.0)
    assert len(list(search.search(lambda _: 0.9, 1000))) >= 32
    assert len(search.sampled) == 64 and "exhausted" in search.stopped_early


def test_with_replay_nothing_is_sampled_again_but_within_a_batch():
    _, metrics, search = record_search(60, children_per_update=1)
    assert [update["samples"] for update in metrics] == list(range(1, 61)) and len(search.sampled) == 60


def test_a_policy_with_a_large_lag_does_not_collapse():
    """400 samples under way, of a smooth reward over 8,000 sequences, which is learned."""
    metrics = list(PolicyGradient(tiny((20, 20, 20)), children_per_update=8, update_lag=49).search(sum, 800))
    late = [update["reward"] for update in metrics[-30:]]
    assert sum(late) / len(late) > 1.2 * metrics[0]["reward"]
    assert min(update["entropy"] for update in metrics) > 3  # nats; uniform is 9


def test_only_the_latest_are_learned_from_again():
    search, scored = PolicyGradient(tiny((20, 20, 20)), replay=5), []
    search.score = lambda children: scored.append(children) or PolicyGradient.score(search, children)
    list(search.search(sum, 20))
    told = list(search.reward_of)
    assert scored == [told[max(0, n - 5) : n] for n in range(2, 21, 2)]


def test_depth_grows_with_the_children_and_the_weights_are_carried_over():
    controller = tiny((3, ANCHOR) * 4, names=("a", "anchor") * 4)
    calls = []
    search = PolicyGradient(controller, num_steps=lambda children: 4 if children < 12 else 8)
    list(search.search(lambda actions: calls.append(actions) or sum(actions), 40))
    lengths = [len(actions) for actions in calls]
    assert lengths == sorted(lengths) and set(lengths) == {3, 10}  # 3, 3, skip; then four layers and six skips
    assert 12 <= lengths.count(3) < 12 + 5 and len(set(calls)) == 40


def test_errors_of_evaluate_reach_the_caller():
    def fail(_):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        record_search(evaluate=fail)


WALK = """
import json, sys, torch
from controller import Controller
from policy_gradient import PolicyGradient

torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
search = PolicyGradient(Controller([6] * 6), replay=200)
for _ in zip(range(200), search.search(lambda actions: sum(actions) % 17 / 17, 10**6)):
    pass
print(json.dumps([list(search.sampled), list(search.sampled.values())]))
"""


def test_the_walk_does_not_depend_on_how_a_processor_rounds():
    """200 updates with other instructions, threads and matrix products: other probabilities, but no other token."""
    runs = []
    for threads, instructions in (("1", {}), ("2", {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"})):
        command, environment = [sys.executable, "-c", WALK, threads], os.environ | {"PYTHONPATH": str(ROOT)}
        options = {"capture_output": True, "text": True, "timeout": 300, "check": True}
        runs.append(json.loads(subprocess.run(command, env=environment | instructions, **options).stdout))
    (walk, log_probs), (same_walk, others) = runs
    assert walk == same_walk and len(walk) > 390 and log_probs != others
    assert log_probs[:10] == pytest.approx(others[:10], rel=0, abs=1e-7)  # in float32 1e-6
