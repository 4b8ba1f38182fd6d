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
from typing import NamedTuple

import torch
from torch import Tensor

from controller import Controller

Actions = tuple[int, ...]


class Batch(NamedTuple):
    actions: Tensor  # (m, T), duplicates included
    log_prob: Tensor  # (m,) when they were sampled
    new: list[Actions]  # those that had not been sampled before, each once


@dataclass(eq=False)
class PolicyGradient:
    """Search with the policy gradient: `ask()` for what is to be evaluated, `tell()` the rewards."""

    controller: Controller
    _: KW_ONLY
    children_per_update: int = 5  # m in §3.2, duplicates included
    update_lag: int = 1  # a batch is sampled from the policy so many updates back: update_lag + 1 are under way
    lr: float = 0.02  # of Adam
    betas: tuple[float, float] = (0.9, 0.9)  # of Adam; a short second decay keeps steps small where gradients grow
    entropy_weight: float = 0.3  # of the entropy bonus in nats, times the share of repeats; not in the paper
    baseline_decay: float = 0.5  # of the moving average, per update
    reward_scale: str = "rank"  # a reward's rank among the children met so far, -1 worst to 1 best; or "none"
    importance_weights: bool = False  # count a stale sample the less, the less likely it has become; for large lags
    patience: int = 200  # batches in a row without a new sequence after which the policy counts as collapsed
    num_steps: Callable[[int], int] | None = None  # of the controller after so many children, for growing depth
    seed: int = 0  # of the sampling

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.controller.parameters(), lr=self.lr, betas=self.betas)
        self.generator = torch.Generator().manual_seed(self.seed)
        self.sampled: set[Actions] = set()
        self.out: deque[Batch] = deque()  # asked for, not told yet
        self.reward_of: dict[Actions, float] = {}  # of every sequence that was told
        self.rewards: list[float] = []  # in the order of the updates, duplicates included
        self.weights: list[float] = []  # of each of them in the moving average
        self.spread = 1.0  # of the scaled rewards; ranks have 1
        self.batches = self.batches_without_new = self.updates = 0
        self.repeats = 0.0  # share of the latest batch that had been sampled before

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

        The batch is cut where `num_children` distinct sequences have been sampled. To evaluate in parallel, ask for
        `update_lag` + 1 batches before telling the first.
        """
        with torch.no_grad():  # (m, T)
            actions, log_prob, _ = self.controller(None, self.children_per_update, self.generator, self.steps)
        new, taken = [], 0
        for taken, sequence in enumerate(map(tuple, actions.tolist()), start=1):  # noqa: B007
            if sequence not in self.sampled:
                self.sampled.add(sequence)
                new.append(sequence)
            if len(self.sampled) == num_children:
                break
        self.out.append(Batch(actions[:taken], log_prob.sum(1)[:taken], new))
        self.batches += 1
        self.batches_without_new = 0 if new else self.batches_without_new + 1
        self.repeats = 1 - len(new) / taken
        return new

    def tell(self, batch: Sequence[Actions], rewards: Sequence[float]) -> dict:
        """Learn from the oldest batch that is out: the reward of each of its sequences, on any real scale.

        Returns the update's metrics. -inf says that an evaluation failed; ValueError for NaN, or for another batch.
        """
        if not self.out or list(map(tuple, batch)) != self.out[0].new or len(rewards) != len(batch):
            raise ValueError("tell() takes the oldest batch that was asked for and not told, and all its rewards")
        if not all(reward < math.inf for reward in rewards):
            raise ValueError(f"rewards must be numbers, or -inf for what failed, not {rewards}")
        actions, log_prob, new = self.out.popleft()
        self.reward_of.update(zip(new, map(float, rewards), strict=True))
        return self.update(actions, log_prob)

    def done(self, num_children: int) -> bool:
        """Whether nothing more is to be asked for."""
        return len(self.sampled) >= num_children or self.stopped_early is not None

    @property
    def steps(self) -> int | None:
        """The controller's steps that the next batch takes; None: all."""
        return self.num_steps(len(self.sampled)) if self.num_steps else None

    @property
    def best(self) -> tuple[Actions, float]:
        """The sequence with the highest reward, of equal ones the earliest, and that reward."""
        return max(self.reward_of.items(), key=lambda item: item[1])

    @property
    def stopped_early(self) -> str | None:
        """Why sampling ended before the budget was spent, or None."""
        choices, n = self.controller.token_choices, len(self.sampled)
        size = math.prod(choices)
        if n >= size == sum(len(actions) == len(choices) for actions in self.sampled):  # not counting shallower ones
            return f"the space is exhausted: all {n} architectures were evaluated"
        if self.batches_without_new >= self.patience:
            return f"the policy has collapsed: {self.patience} updates in a row sampled nothing new"
        return None

    def update(self, actions: Tensor, sampled_log_prob: Tensor) -> dict:
        """One REINFORCE step on `actions` (m, T), whose rewards are known; returns its metrics."""
        rewards = [self.reward_of[sequence] for sequence in map(tuple, actions.tolist())]
        advantage, baseline = self.advantage(rewards)  # (m,)
        loss, entropy = self.loss(actions, advantage, sampled_log_prob if self.importance_weights else None)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.updates += 1
        metrics = {"update": self.updates - 1, "samples": len(self.rewards), "baseline": baseline}
        metrics |= {"reward": sum(rewards) / len(rewards), "best_reward": max(self.rewards)}
        return metrics | {"advantage": advantage.mean().item(), "entropy": entropy.item(), "loss": loss.item()}

    def loss(self, actions: Tensor, advantage: Tensor, sampled_log_prob: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """REINFORCE loss with entropy bonus (§3.2; the bonus is not in the paper) and the mean entropy in nats.

        The bonus, the samples' mean of Σ_t H(pi(. | a_<t)), widens a policy that repeats itself; its gradient leaves
        out how weight shifts between prefixes. With the log-probabilities (m,) that stale samples had when they were
        sampled, each counts min(1, pi / pi_then): truncated importance weights (Espeholt et al. 2018).
        """
        _, log_prob, entropy = self.controller(actions)  # (m, T), (m, T)
        if sampled_log_prob is not None:
            advantage = advantage * (log_prob.detach().sum(1) - sampled_log_prob).exp().clamp(max=1)
        entropy_weight = self.entropy_weight * self.repeats * self.spread
        loss = -(advantage * log_prob.sum(1)).mean() - entropy_weight * entropy.sum(1).mean()
        return loss, entropy.sum(1).mean()

    def advantage(self, rewards: list[float]) -> tuple[Tensor, float]:
        """R - b of a batch (m,), and b: the moving average of all *earlier* rewards, decaying from batch to batch.

        Both on the chosen scale as it is now, so that an average of old ranks is never compared with new ones: a rank
        is one among all children met, this batch's included. The first batch has no b but the middle of the scale, 0.
        """
        self.rewards.extend(rewards)
        scaled = self._scale()  # (all samples met so far,)
        earlier, batch = scaled[: -len(rewards)], scaled[-len(rewards) :]
        weights = torch.tensor(self.weights, dtype=scaled.dtype)
        baseline = ((weights * earlier).sum() / weights.sum()).item() if self.weights else 0.0
        self.weights = [self.baseline_decay * weight for weight in self.weights] + [1.0] * len(rewards)
        return (batch - baseline).to(self.controller.first_input.dtype), baseline

    def _scale(self) -> Tensor:
        """All rewards met so far as the gradient sees them: as they are, or as ranks among the children, -1 to 1."""
        rewards = torch.tensor(self.rewards, dtype=torch.float64)
        ordered = torch.tensor(list(self.reward_of.values()), dtype=torch.float64).sort().values
        if self.reward_scale == "none":
            finite = ordered[ordered.isfinite()]  # what failed counts as the worst of them
            self.spread = (3 * finite.var(correction=0)).sqrt().item() if len(finite) else 0.0
            return rewards.clamp(min=finite[0] if len(finite) else 0)
        below = torch.searchsorted(ordered, rewards)
        above = len(ordered) - torch.searchsorted(ordered, rewards, right=True)
        return (below - above).double() / len(ordered)  # ties in the middle
