"""REINFORCE: rewards become advantages, advantages become a better controller (paper §3.2).

The search works with any function from actions to a reward:

    search = PolicyGradient(Controller(num_choices=[4, 4, 4]))
    for metrics in search.search(evaluate=sum, num_children=40):
        print(metrics)
    print(search.best)
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from controller import Controller

Actions = tuple[int, ...]


class Batch(NamedTuple):
    samples: list[Actions]  # m, duplicates included
    new: list[Actions]  # those that had not been sampled before and are allowed, each once


@dataclass(eq=False)
class PolicyGradient:
    """Search with the policy gradient: `ask()` for what is to be evaluated, `tell()` the rewards."""

    controller: Controller
    _: KW_ONLY
    children_per_update: int = 2  # m in §3.2, duplicates included
    update_lag: int = 4  # a batch is sampled from the policy so many updates back: update_lag + 1 are under way
    lr: float = 0.02  # of Adam at the beginning; with replay it falls as 1 / sqrt(1 + samples / 10)
    entropy_weight: float = 0.22  # of the entropy bonus in nats, for rewards of standard deviation 1; not in the paper
    baseline_decay: float = 0.5  # of the moving average, per update
    reward_scale: str = "rank"  # a reward's rank among the children met so far, -1 worst to 1 best; or "none"
    replay: int = 1000  # the latest children enter every update, and are not sampled again; 0: only the batch (§3.2)
    patience: int = 200  # batches in a row without a new sequence after which the policy counts as collapsed
    num_steps: Callable[[int], int] | None = None  # of the controller after so many children, for growing depth
    allowed: Callable[[Actions], bool] | None = None  # other sequences are not evaluated: failed, at no cost
    seed: int = 0  # of the sampling

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.controller.parameters(), lr=self.lr)
        self.generator = torch.Generator().manual_seed(self.seed)
        self.sampled: dict[Actions, float] = {}  # every sequence, and its log-probability when it was first sampled
        self.out: deque[Batch] = deque()  # asked for, not told yet
        self.reward_of: dict[Actions, float] = {}  # of every sequence that was told, in that order; -inf: refused
        self.refused: set[Actions] = set()  # sequences that are not allowed
        self.average = torch.zeros(0, dtype=torch.float64)  # weight of each of them in the moving average
        self.batches = self.batches_without_new = self.updates = self.samples = 0

    def search(self, evaluate: Callable[[Actions], float], num_children: int) -> Iterator[dict]:
        """Yield the metrics of each update until `num_children` distinct sequences have been evaluated.

        Ends earlier when the space is exhausted or the policy has collapsed; `stopped_early` then says so.
        """
        out: deque[tuple[list[Actions], list[float]]] = deque()
        while out or not self.done(num_children):
            while len(out) <= self.update_lag and not self.done(num_children):
                batch = self.ask(num_children)
                out.append((batch, [evaluate(actions) for actions in batch]))
            yield self.tell(*out.popleft())

    def ask(self, num_children: int | None = None) -> list[Actions]:
        """Sample the next batch; returns what must be evaluated: the sequences never sampled before, in their order.

        Those that are not `allowed` count as failed. The batch is cut where `num_children` distinct sequences have been
        asked for. To evaluate in parallel, ask for `update_lag` + 1 batches before telling the first.
        """
        exclude = self.replay and self.known and not self.exhausted
        known = torch.tensor(self.known[-self.replay :]) if exclude else None  # (k, T)
        with torch.no_grad():  # (m, T)
            actions, log_prob, _ = self.controller(None, self.children_per_update, self.generator, self.steps, known)
        samples, new = [], []
        for sequence, then in zip(map(tuple, actions.tolist()), log_prob.sum(1).tolist(), strict=True):
            samples.append(sequence)
            if sequence not in self.sampled:
                self.sampled[sequence] = then
                if self.allowed is None or self.allowed(sequence):
                    new.append(sequence)
                else:
                    self.refused.add(sequence)
            if self.children == num_children:
                break
        self.out.append(Batch(samples, new))
        self.batches += 1
        self.batches_without_new = 0 if new else self.batches_without_new + 1
        return new

    def tell(self, batch: Sequence[Actions], rewards: Sequence[float]) -> dict:
        """Learn from the oldest batch that is out: the reward of each of its sequences, on any real scale.

        Returns the update's metrics. -inf says that an evaluation failed; ValueError for NaN, or for another batch.
        """
        if not self.out or list(map(tuple, batch)) != self.out[0].new or len(rewards) != len(batch):
            raise ValueError("tell() takes the oldest batch that was asked for and not told, and all its rewards")
        if not all(reward < math.inf for reward in rewards):
            raise ValueError(f"rewards must be numbers, or -inf for what failed, not {rewards}")
        samples, new = self.out.popleft()
        self.reward_of.update(zip(new, map(float, rewards), strict=True))
        self.reward_of.update(dict.fromkeys((s for s in samples if s in self.refused), -math.inf))
        return self.update(samples)

    def done(self, num_children: int) -> bool:
        """Whether nothing more is to be asked for."""
        return self.children >= num_children or self.stopped_early is not None

    @property
    def children(self) -> int:
        """How many distinct sequences have been asked for."""
        return len(self.sampled) - len(self.refused)

    @property
    def steps(self) -> int | None:
        """The controller's steps that the next batch takes; None: all."""
        return self.num_steps(self.children) if self.num_steps else None

    @property
    def known(self) -> list[Actions]:
        """What has been sampled of the next batch's depth."""
        length = len(self.controller.token_choices(self.steps))
        return [sequence for sequence in self.sampled if len(sequence) == length]

    @property
    def exhausted(self) -> bool:
        """Whether all of the next batch's depth has been sampled."""
        return len(self.known) == math.prod(self.controller.token_choices(self.steps))

    @property
    def best(self) -> tuple[Actions, float]:
        """The sequence with the highest reward, of equal ones the earliest, and that reward."""
        return max(self.reward_of.items(), key=lambda item: item[1])

    @property
    def stopped_early(self) -> str | None:
        """Why sampling ended before the budget was spent, or None."""
        if self.exhausted:
            left_out = f", {len(self.refused)} are not allowed" if self.refused else ""
            return f"the space is exhausted: all {self.children} architectures were evaluated{left_out}"
        if self.batches_without_new >= self.patience:
            what = "that is allowed" if self.allowed else "new"
            return f"the policy has collapsed: {self.patience} updates in a row sampled nothing {what}"
        return None

    def update(self, samples: list[Actions]) -> dict:
        """One REINFORCE step on all that is remembered, or without replay on the batch; returns its metrics."""
        children = list(self.reward_of)[-self.replay :] if self.replay else samples
        place = {child: i for i, child in enumerate(self.reward_of)}
        rows, batch = ([place[child] for child in some] for some in (children, samples))
        rewards, scaled = self.scale()  # of all that were told
        log_prob, entropy = self.score(children)  # (n,), (n,)
        weight = self.weight(children, log_prob.detach())  # (n,)
        advantage, baseline = self.advantage(rows, weight, rewards, scaled)  # (n,)
        loss = self.loss(advantage, weight, log_prob, entropy, self.entropy_weight * scaled.std(correction=0))
        self.updates += 1
        self.samples += len(samples)
        if self.replay:  # the more children an update learns from, the less it should forget of the updates before
            self.optimizer.param_groups[0]["lr"] = self.lr / math.sqrt(1 + self.samples / 10)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        metrics = {"update": self.updates - 1, "samples": self.samples, "children": len(place.keys() - self.refused)}
        metrics |= {"reward": rewards[batch].mean().item(), "best_reward": self.best[1], "baseline": baseline}
        metrics |= {"policy_reward": (weight @ rewards[rows].to(weight)).item()}  # what the policy would get on average
        return metrics | {"entropy": (weight @ entropy).item(), "loss": loss.item()}

    def score(self, children: Sequence[Actions]) -> tuple[Tensor, Tensor]:
        """log pi of each child (n,), and the entropies in nats of pi(. | a_<t) along its way, summed (n,)."""
        depths = [self.controller(torch.tensor(list(depth))) for _, depth in groupby(children, key=len)]
        return torch.cat([r.log_prob.sum(1) for r in depths]), torch.cat([r.entropy.sum(1) for r in depths])

    def weight(self, children: Sequence[Actions], log_prob: Tensor) -> Tensor:
        """How much each child counts (n,), 1 in all: as min(1, pi / pi_then), or without replay all alike.

        Truncated importance weights (Espeholt et al. 2018): what has become unlikely since it was sampled counts less.
        """
        then = log_prob.new_tensor([self.sampled[child] for child in children])
        return (bool(self.replay) * (log_prob - then).clamp(max=0)).softmax(0)

    def loss(self, advantage: Tensor, weight: Tensor, log_prob: Tensor, entropy: Tensor, bonus: Tensor) -> Tensor:
        """REINFORCE loss of n children with an entropy bonus (§3.2; the bonus is not in the paper).

        The bonus, the mean of Σ_t H(pi(. | a_<t)), keeps the policy from narrowing too early; its gradient leaves out
        how weight shifts between prefixes.
        """
        return -(weight * advantage * log_prob).sum() - bonus * (weight * entropy).sum()

    def advantage(self, rows: list[int], weight: Tensor, rewards: Tensor, scaled: Tensor) -> tuple[Tensor, float]:
        """R - b of each child (n,), and b as a reward: the moving average of the mean of all *earlier* updates.

        On the chosen scale as it is now, so that an average of old ranks is never compared with new ones. The first
        update has no b but the middle of the scale, 0.
        """
        average = torch.cat([self.average, self.average.new_zeros(len(rewards) - len(self.average))])
        self.average = (self.baseline_decay * average).index_add(0, torch.tensor(rows), weight.to(average))
        share = average / average.sum() if self.updates else average
        baseline = rewards.mean() if self.reward_scale == "rank" and not self.updates else share @ rewards
        return (scaled[rows] - share @ scaled).to(weight), baseline.item()

    def scale(self) -> tuple[Tensor, Tensor]:
        """All rewards (children,), what failed as the worst that did not, and the same as the gradient sees them."""
        rewards = torch.tensor(list(self.reward_of.values()), dtype=torch.float64)
        finite = rewards[rewards.isfinite()]
        floored = rewards.clamp(min=finite.min() if len(finite) else 0)
        if self.reward_scale == "none":
            return floored, floored
        ordered = rewards.sort().values
        below = torch.searchsorted(ordered, rewards)
        above = len(ordered) - torch.searchsorted(ordered, rewards, right=True)
        return floored, (below - above).double() / len(ordered)  # ties in the middle
