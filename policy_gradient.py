"""REINFORCE: rewards become advantages, advantages become a better controller (paper §3.2).

The search works with any function from actions to a reward:

    controller = Controller(num_choices=[4, 4, 4])
    for metrics in PolicyGradient(controller, evaluate=lambda actions: sum(actions)).search(num_children=40):
        print(metrics)
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from controller import Controller

Actions = tuple[int, ...]


@dataclass(eq=False)
class PolicyGradient:
    """Search with the policy gradient; `evaluate` is called once per distinct action sequence, in order of sampling.

    `evaluate(actions)` returns a reward on any real scale, or a `Future` of one.
    """

    controller: Controller
    evaluate: Callable[[Actions], float | Future]
    _: KW_ONLY
    children_per_update: int = 5  # m in §3.2, duplicates included
    update_lag: int = 1  # a batch is sampled from the policy so many updates back: update_lag + 1 are under way
    lr: float = 0.02  # of Adam
    entropy_weight: float = 0.3  # of the entropy bonus in nats, times the share of repeats; not in the paper
    baseline_decay: float = 0.5  # of the moving average, per update
    reward_scale: str = "rank"  # a reward's rank among the children met so far, -1 worst to 1 best; or "none"
    importance_weights: bool = False  # count a stale sample the less, the less likely it has become; for large lags
    patience: int = 200  # batches in a row without a new sequence after which the policy counts as collapsed
    num_steps: Callable[[int], int] | None = None  # of the controller after so many children, for growing depth
    seed: int = 0  # of the sampling

    def __post_init__(self) -> None:
        # A short second decay keeps steps small where gradients suddenly grow.
        self.optimizer = torch.optim.Adam(self.controller.parameters(), lr=self.lr, betas=(0.9, 0.9))
        self.generator = torch.Generator().manual_seed(self.seed)
        self.results: dict[Actions, float | Future] = {}  # every distinct sequence sampled so far
        self.rewards: list[float] = []  # as met in the updates, duplicates included
        self.weights: list[float] = []  # of each of them in the moving average
        self.distinct: dict[Actions, float] = {}  # the same, each sequence once
        self.batches = 0  # sampled so far
        self.batches_without_new = 0
        self.repeats = 0.0  # share of the latest batch that was known already
        self.updates = 0

    def search(self, num_children: int) -> Iterator[dict]:
        """Yield the metrics of each update until `num_children` distinct children have been evaluated.

        Ends earlier when the space is exhausted or the policy has collapsed; `stopped_early` then says so.
        """
        under_way: deque[tuple[Tensor, Tensor, list]] = deque()
        while True:
            while len(under_way) <= self.update_lag and not self._finished(num_children):
                under_way.append(self._sample_batch(num_children))
            if not under_way:
                return
            actions, log_prob, results = under_way.popleft()
            rewards = [result.result() if isinstance(result, Future) else result for result in results]
            yield self.update(actions, rewards, log_prob if self.importance_weights else None)

    @property
    def stopped_early(self) -> str | None:
        """Why sampling ended before the budget was spent, or None."""
        if len(self.results) == math.prod(self.controller.token_choices):
            return f"the space is exhausted: all {len(self.results)} architectures were evaluated"
        if self.batches_without_new >= self.patience:
            return f"the policy has collapsed: {self.patience} updates in a row sampled nothing new"
        return None

    def _finished(self, num_children: int) -> bool:
        return len(self.results) >= num_children or self.stopped_early is not None

    def _sample_batch(self, num_children: int) -> tuple[Tensor, Tensor, list]:
        """Sample m action sequences and start evaluating the new ones; cut where the budget is met.

        Returns them, their log-probabilities (m,), and their rewards or Futures of them.
        """
        known, results = len(self.results), []
        num_steps = self.num_steps(known) if self.num_steps else None
        with torch.no_grad():
            actions, log_prob, _ = self.controller(None, self.children_per_update, self.generator, num_steps)  # (m, T)
        for sequence in map(tuple, actions.tolist()):
            if sequence not in self.results:
                self.results[sequence] = self.evaluate(sequence)
            results.append(self.results[sequence])
            if len(self.results) == num_children:
                break
        new = len(self.results) - known
        self.batches += 1
        self.batches_without_new = 0 if new else self.batches_without_new + 1
        self.repeats = 1 - new / len(results)
        return actions[: len(results)], log_prob.sum(1)[: len(results)], results

    def update(self, actions: Tensor, rewards: list[float], sampled_log_prob: Tensor | None = None) -> dict:
        """One REINFORCE step on `actions` (m, T) and their m rewards; returns its metrics."""
        advantage, baseline = self.advantage(actions, rewards)  # (m,)
        loss, entropy = self.loss(actions, advantage, sampled_log_prob)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.updates += 1
        return {
            "update": self.updates - 1,
            "samples": len(self.rewards),
            "reward": sum(rewards) / len(rewards),
            "best_reward": max(self.rewards),
            "baseline": baseline,
            "advantage": advantage.mean().item(),
            "entropy": entropy.item(),
            "loss": loss.item(),
        }

    def loss(self, actions: Tensor, advantage: Tensor, sampled_log_prob: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """REINFORCE loss with entropy bonus (§3.2; the bonus is not in the paper) and the mean entropy in nats.

        A policy that still finds new sequences is left alone, one that repeats itself is widened: it can exploit what
        it has learned, and does not collapse. With the log-probabilities (m,) that stale samples had when they were
        sampled, each counts min(1, pi / pi_then): truncated importance weights (Espeholt et al. 2018, for large lags).
        """
        _, log_prob, entropy = self.controller(actions)  # (m, T), (m, T)
        if sampled_log_prob is not None:
            advantage = advantage * (log_prob.detach().sum(1) - sampled_log_prob).exp().clamp(max=1)
        entropy_weight = self.entropy_weight * self.repeats
        loss = -(advantage * log_prob.sum(1)).mean() - entropy_weight * entropy.sum(1).mean()
        return loss, entropy.sum(1).mean()

    def advantage(self, actions: Tensor, rewards: list[float]) -> tuple[Tensor, float]:
        """R - b of a batch (m,), and b: the moving average of all *earlier* rewards, decaying from batch to batch.

        Both on the chosen scale as it is now, so that an average of old ranks is never compared with new ones. The
        first batch has nothing to be compared with but the middle of the scale, 0.
        """
        self.rewards.extend(rewards)
        self.distinct.update(zip(map(tuple, actions.tolist()), rewards, strict=True))
        scaled = self._scale()  # (all samples met so far,)
        earlier, batch = scaled[: -len(rewards)], scaled[-len(rewards) :]
        weights = torch.tensor(self.weights, dtype=scaled.dtype)
        baseline = ((weights * earlier).sum() / weights.sum()).item() if self.weights else 0.0
        self.weights = [self.baseline_decay * weight for weight in (*self.weights, *[1.0] * len(rewards))]
        return batch - baseline, baseline

    def _scale(self) -> Tensor:
        """All rewards met so far as the gradient sees them: as they are, or as ranks among the children, -1 to 1."""
        rewards = torch.tensor(self.rewards, dtype=self.controller.first_input.dtype)
        if self.reward_scale == "none":
            return rewards
        ordered = torch.tensor(list(self.distinct.values()), dtype=rewards.dtype).sort().values
        below = torch.searchsorted(ordered, rewards)
        above = len(ordered) - torch.searchsorted(ordered, rewards, right=True)
        return (below - above) / len(ordered)  # ties in the middle
