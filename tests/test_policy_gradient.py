"""REINFORCE against exact gradients, and the search loop against its contract."""

import copy
import csv
import itertools
import json
import math
import os
import random
import re
import subprocess
import sys
from collections import deque
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import torch

from controller import ANCHOR, Controller
from policy_gradient import PolicyGradient
from search_space import SmallSpace
from utils import child_seed

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


def tell(search: PolicyGradient, sequences: torch.Tensor, rewards: list[float]) -> dict:
    """An update with these sequences (n, T), whatever the policy samples."""
    batch = list(map(tuple, sequences.tolist()))
    new = [actions for actions in dict.fromkeys(batch) if actions not in search.asked]
    search.ask(num_children=0)  # an empty batch, so that there are samples of the policy
    search.asked |= dict.fromkeys(new)
    search.pending[-1] = batch
    return search.tell(new, [rewards[batch.index(actions)] for actions in new])


def loss_gradient(search: PolicyGradient, sequences: list, rewards: list[float], baseline: float) -> torch.Tensor:
    """The gradient that one update would take, with rewards as they are, from children that are all alike."""
    search.reward_of |= dict(zip(sequences, rewards, strict=True))
    search.baseline, found = baseline, []
    before = [p.detach().clone() for p in search.controller.parameters()]
    search.optimizer.step = lambda: found.append(torch.cat([p.grad.flatten() for p in search.controller.parameters()]))
    search.optimizer.zero_grad = lambda: [
        p.__setattr__("grad", torch.zeros_like(p)) for p in search.controller.parameters()
    ]
    search.update(sequences)
    assert all(map(torch.equal, before, search.controller.parameters()))
    return found[0]


@pytest.mark.parametrize("num_choices", [NUM_CHOICES, (3, ANCHOR, 2, ANCHOR, 2, ANCHOR)], ids=["tokens", "anchors"])
@pytest.mark.parametrize("entropy_weight", [0.0, 0.7])
@pytest.mark.parametrize("baseline", [0.0, 0.7, -20.0])
def test_expected_gradient_is_that_of_the_exact_expected_reward_and_entropy(baseline, entropy_weight, num_choices):
    """Of E[R] + tau H, averaged over all sequences by their probabilities; a baseline changes nothing in it."""
    controller = far_from_uniform(num_choices)
    sequences = torch.tensor(list(itertools.product(*map(range, controller.token_choices()))))
    rewards = torch.linspace(-1, 2, len(sequences), dtype=torch.float64).sin() * 3
    log_prob = controller(sequences).log_prob.sum(1)
    tau = entropy_weight * rewards.std(correction=0) / math.log(len(sequences))
    exact = gradient(controller, -(log_prob.exp() * (rewards - tau * log_prob)).sum())

    search = PolicyGradient(controller, reward_scale="none", replay=0, entropy_weight=entropy_weight)
    search.reward_of = dict(
        zip(map(tuple, sequences.tolist()), rewards.tolist(), strict=True)
    )  # which gives the spread
    expected = torch.zeros_like(exact)
    for actions, reward, p in zip(
        map(tuple, sequences.tolist()), rewards.tolist(), log_prob.exp().tolist(), strict=True
    ):
        expected += p * loss_gradient(search, [actions], [reward], baseline)
    assert exact.norm() > 0.1
    torch.testing.assert_close(expected, exact, rtol=1e-10, atol=1e-12)


def test_all_that_is_remembered_weighs_the_same():
    controller = far_from_uniform()
    rewards = [float(i % 5) for i in range(18)]
    search = PolicyGradient(controller, reward_scale="none", entropy_weight=0.3)
    search.reward_of = dict(zip(SEQUENCES, rewards, strict=True))
    each = [loss_gradient(search, [SEQUENCES[i]], [rewards[i]], 0.4) for i in range(18)]
    together = loss_gradient(search, SEQUENCES, rewards, 0.4)
    torch.testing.assert_close(together, torch.stack(each).mean(0), rtol=1e-10, atol=1e-12)


def test_the_optimum_is_the_softmax_of_the_ranks():
    """pi ∝ exp(R / tau) has the gradient 0 on all children, whatever the rewards (and only there: see the next)."""
    search = PolicyGradient(tiny((3, 3)), lr=0.01, entropy_weight=1.0, baseline_decay=0.0)
    everything = list(itertools.product(range(3), range(3)))
    tell(search, torch.tensor(everything), [float(3 * a - b) for a, b in everything])
    for _ in range(700):
        loss = search.update(everything)
    R = search.scaled([search.reward_of[actions] for actions in everything])
    target = (R * math.log(9) / R.std(correction=0)).log_softmax(0)
    torch.testing.assert_close(search.controller(torch.tensor(everything)).log_prob.sum(1), target, rtol=0, atol=0.05)
    assert abs(loss) < 0.05


@pytest.mark.parametrize(
    "scale, unit, spread", [("none", 1, 0.05**0.5), ("none", 50, 50 * 0.05**0.5), ("rank", 1, (5 / 16) ** 0.5)]
)
def test_tau_is_a_share_of_the_spread_for_each_nat_of_a_uniform_policy(scale, unit, spread):
    """So that a weight means the same on any scale and in any space; ranks are -3/4, -1/4, 1/4, 3/4."""
    for num_choices in ((4, 4), (4,) * 6, (3, 2, 5)):
        search = PolicyGradient(tiny(num_choices), reward_scale=scale, entropy_weight=0.3)
        children = list(itertools.islice(itertools.product(*map(range, num_choices)), 4))
        tell(search, torch.tensor(children), [unit * reward for reward in (0.2, 0.4, 0.6, 0.8)])
        _, tau = search.score(children[:2])
        assert tau.tolist() == pytest.approx([0.3 * spread / math.log(math.prod(num_choices))] * 2)


def test_tau_of_children_of_several_depths():
    """In any order: each has the log-probability that it has alone, and tau by the number of networks of its depth."""
    search = PolicyGradient(tiny((3, ANCHOR) * 3, names=("a", "anchor") * 3))
    shallow, deep = 0.7 / 2 / math.log(3 * 3 * 2), 0.7 / 2 / math.log(3**3 * 2**3)
    children = [(0, 1, 1), (2, 2, 0, 1, 0, 1), (2, 0, 0), (1, 1, 0)]
    search.reward_of = dict(zip(children[:2], (1.0, 2.0), strict=True))
    log_prob, tau = search.score(children)
    assert tau.tolist() == pytest.approx([shallow, deep, shallow, shallow])
    for actions, expected in zip(children, log_prob, strict=True):
        torch.testing.assert_close(search.controller(torch.tensor([actions])).log_prob.sum(), expected)


def test_a_space_of_one_sequence_has_no_entropy():
    search = PolicyGradient(tiny((1,)))
    (metrics,) = search.search(sum, 5)
    assert math.isfinite(metrics["loss"]) and "exhausted" in search.stopped_early


def test_rewards_without_ranks_are_learned_too():
    controller = tiny((4,) * 5)
    search = PolicyGradient(controller, reward_scale="none")
    list(search.search(lambda actions: sum(a == 2 for a in actions) / 5, 150))
    sampled = controller(num_samples=400, generator=torch.Generator().manual_seed(0)).actions
    assert (sampled == 2).double().mean().item() > 0.4


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
        {"replay": 0, "children_per_update": 5, "num_choices": (4, 4, 4)},
        {"replay": 0, "reward_scale": "none", "update_lag": 2, "children_per_update": 4, "entropy_weight": 0.0},
        {"replay": 5, "lr": 0.03, "children_per_update": 3, "num_choices": (4, 4, 4)},
        {"lr": 0.05, "entropy_weight": 1.1, "baseline_decay": 0.9, "update_lag": 0, "replay": 7},
        {"children_per_update": 3, "num_choices": (3, ANCHOR, 2, ANCHOR, 2, ANCHOR, 2), "num_layers": 2, "seed": 3},
    ],
    ids=str,
)
def test_updates_are_those_of_the_formulas(settings):
    """Six updates recomputed: samples one by one, ranks by counting, the loss by autograd, Adam by hand."""
    settings = dict(settings)
    num_choices, num_layers = settings.pop("num_choices", NUM_CHOICES), settings.pop("num_layers", 1)
    controller = tiny(num_choices, num_layers=num_layers)
    for parameter in controller.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    search = PolicyGradient(controller, **settings)
    m, lag = settings.get("children_per_update", 2), settings.get("update_lag", 4)
    lr, beta1, beta2, replay = settings.get("lr", 0.02), 0.9, 0.999, settings.get("replay", 1000)
    weight, decay = settings.get("entropy_weight", 0.7), settings.get("baseline_decay", 0.5)

    expected = copy.deepcopy(controller)
    parameters = list(expected.parameters())
    moments = [[torch.zeros_like(p), torch.zeros_like(p)] for p in parameters]
    generator = torch.Generator().manual_seed(settings.get("seed", 0))
    pending, asked, reward_of, b, told = [], [], {}, 0.0, 0
    for update in range(6):
        while len(pending) <= lag and len(asked) + m < math.prod(expected.token_choices()):
            with torch.no_grad():
                rollout = expected(None, 200, generator)
            batch = []
            for actions in map(tuple, rollout.actions.tolist()):
                if len(batch) < m and not (replay and actions in (*asked, *batch)):
                    batch.append(actions)
            new = [actions for actions in dict.fromkeys(batch) if actions not in asked]
            assert len(batch) == m and search.ask() == new and search.pending[-1] == batch
            asked += new
            assert list(search.asked) == asked
            pending.append((batch, new))
        batch, new = pending.pop(0)
        metrics = search.tell(new, [graded(actions) for actions in new])
        reward_of |= {actions: graded(actions) for actions in new}
        told += len(batch)
        assert search.reward_of == reward_of

        children = list(reward_of)[-replay:] if replay else batch
        everything = list(reward_of.values())
        scale = floored if settings.get("reward_scale") == "none" else ranks
        scaled = dict(zip(reward_of, scale(everything, everything), strict=True))
        middle = sum(scaled.values()) / len(scaled)
        spread = (sum((value - middle) ** 2 for value in scaled.values()) / len(scaled)) ** 0.5
        tau = weight * spread / math.log(math.prod(expected.token_choices()))
        log_prob = [row.sum() for row in expected(torch.tensor(children)).log_prob]
        value = [scaled[actions] - tau * lp.item() for actions, lp in zip(children, log_prob, strict=True)]
        loss = sum(-(v - b) * lp for v, lp in zip(value, log_prob, strict=True)) / len(children)
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        with torch.no_grad():
            for p, g, moment in zip(parameters, gradients, moments, strict=True):
                moment[0] = beta1 * moment[0] + (1 - beta1) * g
                moment[1] = beta2 * moment[1] + (1 - beta2) * g**2
                one, two = moment[0] / (1 - beta1 ** (update + 1)), moment[1] / (1 - beta2 ** (update + 1))
                fall = math.sqrt(1 + told / sum(expected.token_choices())) if replay else 1
                p -= lr / fall * one / (two.sqrt() + 1e-8)

        torch.testing.assert_close(list(controller.parameters()), parameters, rtol=0, atol=1e-9)
        good = [reward_of[actions] for actions in batch if reward_of[actions] > -math.inf]
        assert metrics == {
            "update": update,
            "samples": told,
            "children": len(reward_of),
            "reward": pytest.approx(sum(good) / (len(good) or 1), abs=1e-9),
            "best_reward": max(everything),
            "baseline": pytest.approx(b, abs=1e-9),  # of the earlier updates alone
            "entropy": pytest.approx(rollout.entropy.sum(1).mean().item(), abs=1e-9),
            "loss": pytest.approx(loss.item(), abs=1e-9),
        }
        b = decay * b + (1 - decay) * sum(value) / len(value)
    assert -math.inf in reward_of.values() and len(set(reward_of.values())) > 3
    assert search.updates == 6 and search.samples == told
    assert replay or told > len(reward_of)  # without replay, what is known is sampled again


def test_settings_unless_told_otherwise():
    """Also in the README and in train.py, whose flags say the same."""
    settings = {field.name: field.default for field in fields(PolicyGradient)}
    assert settings.pop("controller") is MISSING and settings.pop("num_steps")(1000) is None
    assert settings == {
        **{"children_per_update": 2, "update_lag": 4, "lr": 0.02, "entropy_weight": 0.7, "baseline_decay": 0.5},
        **{"reward_scale": "rank", "replay": 1000, "patience": 2000, "allowed": None, "seed": 0},
    }
    with pytest.raises(TypeError, match="positional"):
        PolicyGradient(tiny(), 5)
    assert len({PolicyGradient(tiny()), PolicyGradient(tiny())}) == 2  # a search is itself, not its settings


def test_a_search_starts_from_nothing():
    search = PolicyGradient(tiny())
    assert search.samples_without_new == search.updates == search.samples == 0 and search.stopped_early is None
    assert not (search.asked or search.refused or search.pending or search.reward_of)


def test_rewards_are_kept_in_float64():
    search = PolicyGradient(tiny(), reward_scale="none")
    tell(search, ALL_ACTIONS[:2], [1e8, 1e8 + 1])
    assert search.scaled([1e8, 1e8 + 1]).tolist() == [1e8, 1e8 + 1]


def test_what_failed_counts_as_the_worst_that_did_not():
    search = PolicyGradient(tiny(), reward_scale="none")
    metrics = tell(search, ALL_ACTIONS[:2], [-math.inf, -math.inf])
    assert search.scaled([-math.inf]).tolist() == [0] and metrics["reward"] == 0  # nothing is known yet
    metrics = tell(search, ALL_ACTIONS[2:5], [0.5, 1.5, -math.inf])
    assert search.scaled([-math.inf, 0.5, 1.5]).tolist() == [0.5, 0.5, 1.5] and metrics["reward"] == 1


@pytest.mark.parametrize("replay", [0, 1000])
def test_update_raises_the_probability_of_the_better_child(replay):
    controller = tiny()
    search = PolicyGradient(controller, entropy_weight=0.0, replay=replay)
    good, bad = ALL_ACTIONS[3:4], ALL_ACTIONS[14:15]
    before = (controller(good).log_prob.sum() - controller(bad).log_prob.sum()).item()
    tell(search, torch.cat([good, bad]), [0.99, 0.98])
    assert (controller(good).log_prob.sum() - controller(bad).log_prob.sum()).item() > before


@pytest.mark.parametrize("decay", [0.8, 0.0, 1.0])
def test_the_baseline_is_read_before_the_batch_enters_it(decay):
    search = PolicyGradient(tiny(), baseline_decay=decay, reward_scale="none", replay=0, entropy_weight=0.0)
    b, seen = 0.0, []
    for place, rewards in ((0, [1.0, 3.0]), (2, [5.0, 5.0]), (4, [0.5, 2.0])):
        seen.append((tell(search, ALL_ACTIONS[place : place + 2], rewards)["baseline"], b))
        b = decay * b + (1 - decay) * sum(rewards) / 2
    assert seen[0] == (0, 0) and [found for found, _ in seen] == pytest.approx([b for _, b in seen])
    assert search.baseline == pytest.approx(b)


@pytest.mark.parametrize("exponent", [1, 3])
def test_ranks_come_from_the_children_met_so_far(exponent):
    """Worked out by hand; a monotone transformation of the reward such as the paper's cube changes nothing."""
    search = PolicyGradient(tiny())

    def scaled(*accuracies):
        return search.scaled([accuracy**exponent for accuracy in accuracies]).tolist()

    tell(search, ALL_ACTIONS[:2], [0.5**exponent, 0.7**exponent])
    assert scaled(0.5, 0.7) == [-1 / 2, 1 / 2]
    tell(search, ALL_ACTIONS[2:3], [0.6**exponent])
    assert scaled(0.7, 0.6) == pytest.approx([2 / 3, 0])
    tell(search, ALL_ACTIONS[3:5], [0.6**exponent, 0.9**exponent])
    assert scaled(0.5, 0.6, 0.7, 0.9) == pytest.approx([-4 / 5, -1 / 5, 2 / 5, 4 / 5])  # ties in the middle
    assert scaled(0.65, 0.4, 1.0) == pytest.approx([1 / 5, -1, 1])  # of what is none of them, such as a mean


def test_ranks_tell_apart_what_float32_does_not():
    search = PolicyGradient(tiny())
    tell(search, ALL_ACTIONS[:3], [1e8, 1e8 + 1, 1e8 + 2])
    assert search.scaled([1e8, 1e8 + 1, 1e8 + 2]).tolist() == pytest.approx([-2 / 3, 0, 2 / 3])


# --- what is returned ----------------------------------------------------------------------------------------------


def test_the_ranking_is_the_sum_of_rank_and_what_the_policy_expects():
    search = PolicyGradient(far_from_uniform(), entropy_weight=4.0)
    tell(search, ALL_ACTIONS[:9], [0.1 * i for i in range(9)])
    rewards = {SEQUENCES[i]: [0.1 * i] for i in range(9)} | {SEQUENCES[4]: [0.4, 0.8]}
    R = {
        s: sum((x < sum(r) / len(r)) - (x > sum(r) / len(r)) for x in search.reward_of.values()) / 9
        for s, r in rewards.items()
    }
    with torch.no_grad():
        log_prob = search.controller(ALL_ACTIONS[:9]).log_prob.sum(1).tolist()
    spread = (sum((2 * i / 9 - 8 / 9) ** 2 for i in range(9)) / 9) ** 0.5
    weight = 9 / (4 * (3 + 2 + 3))
    value = {s: R[s] + weight * 4.0 * spread / math.log(18) * lp for s, lp in zip(SEQUENCES[:9], log_prob, strict=True)}
    assert search.ranking(rewards) == sorted(rewards, key=value.get, reverse=True) != sorted(R, key=R.get, reverse=True)


def test_the_more_children_were_learned_from_the_more_the_policy_counts():
    """Worked out by hand: R is 1/4, -1/4, 3/4, -3/4, and tau log pi is -1, -2, -3, -3, up to a constant."""
    controller = tiny((4, 4))
    torch.nn.init.zeros_(controller.heads["step_0"].weight)
    controller.heads["step_0"].bias.data = torch.tensor([1 / 2, 1 / 4, 1 / 8, 1 / 8], dtype=torch.float64).log()
    torch.nn.init.zeros_(controller.heads["step_1"].weight)
    torch.nn.init.zeros_(controller.heads["step_1"].bias)
    search = PolicyGradient(controller, entropy_weight=math.log2(16) / math.sqrt(5 / 16))
    reward = {0: 0.3, 1: 0.2, 2: 0.4, 3: 0.1}
    some = {(i, 0): [reward[i]] for i in range(4)}
    search.reward_of = {actions: rewards[0] for actions, rewards in some.items()}
    assert search.trust == 4 / (4 * 8)  # sums: 0.12, -0.50, 0.38, -1.12
    assert search.ranking(some) == [(2, 0), (0, 0), (1, 0), (3, 0)]
    search.reward_of = {(i, j): reward[i] for i in range(4) for j in range(4)}
    assert search.trust == 16 / (4 * 8)  # sums: -0.25, -1.25, -0.75, -2.25
    assert search.ranking(some) == [(0, 0), (2, 0), (1, 0), (3, 0)]


def test_the_policy_never_counts_more_than_what_was_measured():
    search = PolicyGradient(tiny((4, 4)))
    search.reward_of = {(i, 0): 0.5 for i in range(31)}
    assert search.trust == 31 / 32
    search.reward_of = {(i, 0): 0.5 for i in range(33)}
    assert search.trust == 1


def test_choices_that_are_not_made_yet_need_no_children():
    search = PolicyGradient(tiny((2, 3)), num_steps=lambda children: 1 if children < 2 else 2)
    assert search.trust == 0
    tell(search, torch.tensor([[0]]), [0.5])
    assert search.trust == 1 / (4 * 2)
    tell(search, torch.tensor([[1]]), [0.6])
    assert search.trust == 2 / (4 * (2 + 3))


def test_of_equal_ones_the_earliest_is_returned():
    search = PolicyGradient(tiny(), entropy_weight=0.0)
    tell(search, ALL_ACTIONS[:5], [0.1, 0.7, 0.3, 0.7, 0.2])
    ranking = search.ranking({actions: [reward] for actions, reward in search.reward_of.items()})
    assert ranking == [SEQUENCES[i] for i in (1, 3, 2, 4, 0)]


# --- the search ---------------------------------------------------------------------------------------------------


def test_a_toy_reward_is_learned_clearly_better_than_chance():
    """Reward: the share of tokens equal to 2; a uniform policy has 1/4 of them, over four seeds."""

    def share(actions):
        return sum(a == 2 for a in actions) / len(actions)

    shares = []
    for seed in range(4):
        torch.manual_seed(seed)
        controller = Controller([4] * 5)
        list(PolicyGradient(controller, seed=seed).search(share, num_children=80))
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
    settings = {"update_lag": update_lag, "replay": replay, "lr": 0.02 if replay else 0.005}
    calls, metrics, policy_gradient = record_search(num_children, **settings)
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
    assert cut.pending == deque([batch[:3]])
    assert cut.done(3) and not cut.done(4)
    metrics = cut.tell(batch[:3], [0.1, 0.2, 0.3])
    assert metrics["samples"] == 3 and cut.updates == 1 and not cut.pending


@pytest.mark.parametrize("replay", [0, 1000])
def test_who_asks_on_when_the_budget_is_spent_gets_nothing(replay):
    search = PolicyGradient(tiny((4, 4, 4)), replay=replay)
    batch = search.ask(2)
    assert len(batch) == 2 == len(search.asked) and search.ask(2) == [] and len(search.asked) == 2
    search.tell(batch, [0.1, 0.2])
    assert math.isfinite(search.tell([], [])["loss"]) and len(search.reward_of) == 2


@pytest.mark.parametrize("replay", [1000, 0])
def test_what_is_not_allowed_is_left_out_and_sampled_again(replay):
    """It costs nothing, is no reward, and the batches are as large as ever."""

    def allowed(actions):
        return sum(actions) % 3 > 0

    evaluated = []
    search = PolicyGradient(tiny((4, 4, 4)), children_per_update=3, seed=4, replay=replay, allowed=allowed)
    for metrics in search.search(lambda actions: evaluated.append(actions) or sum(actions), 15):
        assert metrics["children"] == len(search.reward_of)
    assert len(evaluated) == 15 == len(search.asked) and all(map(allowed, evaluated))
    assert list(search.reward_of) == evaluated and not any(map(allowed, search.refused)) and search.refused
    assert search.updates == 5 or not replay


def test_what_is_not_allowed_is_asked_about_once():
    asked = []
    search = PolicyGradient(tiny((3, 3)), allowed=lambda actions: asked.append(actions) or actions[0] == 1)
    list(search.search(sum, 3))
    assert len(asked) == len(set(asked)) and "exhausted" in search.stopped_early


def test_under_a_limit_the_networks_within_it_are_learned():
    """A fifth of MNIST's small space allowed: children after the first 25 are better than those that are allowed."""
    table = list(csv.DictReader((ROOT / "results" / "mnist_space.csv").open()))
    space, limit = SmallSpace(), sorted(int(row["parameters"]) for row in table)[len(table) // 5]
    found = {row["architecture"]: row for row in table if int(row["parameters"]) <= limit}
    late = []
    for seed in range(6):
        torch.manual_seed(seed)
        controller = Controller(space.num_choices, space.names)
        search = PolicyGradient(controller, seed=seed, allowed=lambda actions: str(space.decode(actions)) in found)
        list(search.search(lambda actions: float(found[str(space.decode(actions))]["val_0"]), 50))
        late += [float(found[str(space.decode(actions))]["val_1"]) for actions in list(search.reward_of)[25:]]
    accuracies = [float(row["val_1"]) for row in found.values()]
    assert sum(late) / len(late) > sum(accuracies) / len(accuracies) + 0.0003  # 0.0007 in 30 searches


def test_a_limit_that_nothing_meets_ends_the_search():
    search = PolicyGradient(tiny((2, 2)), allowed=lambda actions: False)
    assert list(search.search(lambda actions: 1 / 0, 5)) and not search.asked
    assert "exhausted" in search.stopped_early and "4 are not allowed" in search.stopped_early
    search = PolicyGradient(tiny((20,) * 6), allowed=lambda actions: False, patience=50)
    assert list(search.search(lambda actions: 1 / 0, 5)) and "nothing that is allowed" in search.stopped_early


def test_samples_without_anything_new_are_counted():
    search = PolicyGradient(tiny((1, 2)), children_per_update=5, replay=0)
    with torch.no_grad():
        search.controller.heads["step_1"].bias[1] = 100.0
    counts = []
    for _ in range(3):
        search.ask()
        counts.append((len(search.pending), search.samples_without_new))
    assert counts == [(1, 4), (2, 9), (3, 14)]
    with torch.no_grad():
        search.controller.heads["step_1"].bias[0] = 200.0
    assert search.ask() == [(0, 0)] and search.samples_without_new == 4


def test_rewards_are_kept_as_floats_and_in_the_order_in_which_they_came():
    search = PolicyGradient(tiny((20, 20, 20)), children_per_update=5)
    batch = search.ask()
    search.tell(batch, torch.arange(5))
    assert list(search.reward_of.items()) == [(actions, float(i)) for i, actions in enumerate(batch)]
    assert {type(reward) for reward in search.reward_of.values()} == {float}


def test_why_a_search_ended_is_said():
    _, _, search = record_search(1000, num_choices=(2, 3))
    assert search.stopped_early == "the space is exhausted: all 6 architectures were evaluated" and search.done(1000)
    search = PolicyGradient(tiny((4, 4, 4)), patience=20)
    search.samples_without_new = 19
    assert search.stopped_early is None and not search.done(1)
    search.samples_without_new = 20
    assert search.done(1)
    assert search.stopped_early == "20 samples of the policy in a row were nothing new"


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
    search, pending, asked, told = PolicyGradient(tiny((4, 4, 4)), update_lag=2), [], [], []
    while pending or not search.done(40):
        while len(pending) < 3 and not search.done(40):
            pending.append(search.ask(40))
            asked += pending[-1]
        batch = pending.pop(0)
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
    assert len(search.pending) == 2 and not search.reward_of
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
    """The default searches of a reward that can be learned, a column a seed: shows any change that was not meant."""
    recorded = [line.split() for line in (ROOT / "tests" / "recorded_walk.txt").read_text().splitlines()]
    for seed, expected in enumerate(zip(*recorded, strict=True)):
        assert list(expected) == walk(seed, len(expected))


def walk(seed: int, num_children: int) -> list[str]:
    """The networks that a search with the default settings trains."""
    space, names = SmallSpace(), []
    torch.manual_seed(seed)
    search = PolicyGradient(Controller(space.num_choices, space.names), seed=seed)

    def evaluate(actions):
        names.append(str(space.decode(actions)))
        return sum(actions) + child_seed(seed, names[-1]) % 997 / 500

    list(search.search(evaluate, num_children))
    return names


def test_an_exhausted_space_ends_the_search():
    calls, metrics, policy_gradient = record_search(1000, num_choices=(2, 3))
    assert len(calls) == 6 and "exhausted" in policy_gradient.stopped_early
    assert math.isfinite(metrics[-1]["loss"])


def test_who_asks_on_in_an_exhausted_space_gets_nothing_new():
    _, _, search = record_search(1000, num_choices=(2, 3))
    assert search.ask() == [] and not search.pending[-1]
    assert math.isfinite(search.tell([], [])["loss"])


def test_a_space_that_has_yet_to_grow_is_not_exhausted():
    """4 of 2 x 2 sequences have been sampled, but two of them are shallow ones."""
    search = PolicyGradient(tiny((2, 2)), num_steps=lambda children: 1 if children < 2 else 2)
    list(search.search(sum, 100))
    lengths = [len(actions) for actions in search.asked]
    assert lengths.count(1) == 2 and lengths.count(2) == 4 and "all 6" in search.stopped_early


def test_a_policy_that_samples_nothing_new_ends_the_search():
    policy_gradient = PolicyGradient(certain(), lr=0.0, patience=30, replay=0, children_per_update=5)
    metrics = list(policy_gradient.search(lambda _: 0.9, 1000))
    assert len(policy_gradient.asked) == 1 and 6 <= len(metrics) <= 8
    assert "30 samples of the policy in a row were nothing new" in policy_gradient.stopped_early


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
    assert len(search.asked) == 64 and "exhausted" in search.stopped_early


def test_all_of_a_depth_are_found_before_it_grows():
    search = PolicyGradient(certain(), lr=0.0, num_steps=lambda children: 2 if children < 16 else 3)
    list(search.search(lambda _: 0.9, 40))
    assert [len(actions) for actions in search.asked] == [2] * 16 + [3] * 24


def ask_probability(search: PolicyGradient, known: list, n: int) -> torch.Tensor:
    """How often each of 18 sequences is asked for first (18,), in n searches that know some."""
    counts = torch.zeros(18)
    for seed in range(n):
        search.asked, search.samples_without_new = dict.fromkeys(known), 0
        search.generator.manual_seed(seed)
        (new,) = search.ask()
        counts[SEQUENCES.index(new)] += 1
    return counts / n


@pytest.mark.parametrize("patience", [2000, 0], ids=["sampled until new", "listed"])
def test_what_is_known_is_left_out_and_the_rest_keeps_its_proportions(patience):
    """pi(a) / (1 - pi(known)) of every other sequence, by enumeration: sampled, or drawn from all that are left."""
    search = PolicyGradient(far_from_uniform(), children_per_update=1, patience=patience)
    probability = search.controller(ALL_ACTIONS).log_prob.sum(1).exp().detach()
    known = [SEQUENCES[i] for i in probability.argsort(descending=True)[:5]]
    rest = torch.tensor([actions not in known for actions in SEQUENCES])
    expected = (probability * rest / (probability * rest).sum()).float()
    found = ask_probability(search, known, 1500)
    assert not found[~rest].any() and expected.max() < 0.6
    torch.testing.assert_close(found, expected, rtol=0, atol=4.5 * (0.25 / 1500) ** 0.5)


def test_of_a_large_space_nothing_is_listed():
    search = PolicyGradient(tiny((4,) * 30), patience=400)
    search.controller.forward = lambda *args: Controller.forward(
        search.controller, torch.zeros(200, 30, dtype=torch.long)
    )
    assert search.ask() == [(0,) * 30] and search.ask() == []
    assert search.stopped_early == "400 samples of the policy in a row were nothing new"


def test_with_replay_nothing_is_sampled_again():
    _, metrics, search = record_search(60, children_per_update=3)
    assert [update["samples"] for update in metrics] == list(range(3, 61, 3)) and len(search.asked) == 60


@pytest.mark.parametrize("replay", [100, 1000])
def test_a_long_search_of_noise_goes_on(replay):
    """Rewards of which nothing can be learned: the policy must not sit down on what it knows."""
    noise = random.Random(0)
    search = PolicyGradient(tiny((3,) * 9), replay=replay, children_per_update=5)
    list(search.search(lambda actions: noise.random(), 1500))
    assert len(search.asked) == 1500 and search.stopped_early is None


def test_noise_is_not_taken_for_learning():
    """Rewards of pure noise: later children are not better than earlier ones (two-sided, 12 searches)."""
    rises = []
    for seed in range(12):
        noise = random.Random(seed)
        _, metrics, _ = record_search(80, seed, (5,) * 4, lambda actions, noise=noise: noise.random())
        rewards = [update["reward"] for update in metrics]
        rises.append(sum(rewards[20:]) / 20 - sum(rewards[:20]) / 20)
    mean = sum(rises) / 12
    error = (sum((rise - mean) ** 2 for rise in rises) / 11 / 12) ** 0.5
    assert abs(mean) < 3 * error


def test_a_policy_with_a_large_lag_does_not_collapse():
    """400 pending samples, of a smooth reward over 8,000 sequences, which is learned."""
    metrics = list(PolicyGradient(tiny((20, 20, 20)), children_per_update=8, update_lag=49).search(sum, 800))
    late = [update["reward"] for update in metrics[-30:]]
    assert sum(late) / len(late) > 1.2 * metrics[0]["reward"]
    assert min(update["entropy"] for update in metrics) > 1  # nats; uniform is 9


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


def test_the_learning_rate_falls_with_the_tokens_that_are_sampled_now():
    controller = tiny((3, 4) * 2, names=("a", "b") * 2)
    search = PolicyGradient(controller, update_lag=0, num_steps=lambda children: 2 if children < 6 else 4)
    rates = []
    for metrics in search.search(sum, 12):
        rates.append(search.optimizer.param_groups[0]["lr"])
        choices = 3 + 4 if metrics["children"] < 6 else 2 * (3 + 4)
        assert rates[-1] == pytest.approx(0.02 / math.sqrt(1 + metrics["children"] / choices))
    assert len(rates) == 6 and rates[2] > rates[1]  # of twice as many choices six children say less


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
for _ in zip(range(50), search.search(lambda actions: sum(actions) % 17 / 17, 10**6)):
    pass
known = list(search.asked)
log_prob = search.controller(torch.tensor(known)).log_prob.sum(1)
print(json.dumps([known, log_prob.tolist()]))
"""


def test_the_walk_does_not_depend_on_how_a_processor_rounds():
    """50 updates with other instructions, threads and matrix products: other probabilities, but no other token."""
    runs = []
    for threads, instructions in (("1", {}), ("2", {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"})):
        command, environment = [sys.executable, "-c", WALK, threads], os.environ | {"PYTHONPATH": str(ROOT)}
        options = {"capture_output": True, "text": True, "timeout": 600, "check": True}
        runs.append(json.loads(subprocess.run(command, env=environment | instructions, **options).stdout))
    (walk, log_probs), (same_walk, others) = runs
    assert walk == same_walk and len(walk) == 108 and log_probs != others
    assert log_probs == pytest.approx(others, rel=0, abs=1e-6)  # 1e-8 after 100 updates, in float32 1
