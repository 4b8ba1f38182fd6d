"""REINFORCE (paper §3.2) with an entropy bonus, on all children that are remembered.

    repeat: sample m new sequences a of tokens from the policy pi, and evaluate them; R is the rank of a's reward
            theta <- a step of Adam along the mean, over the remembered a, of (R - tau log pi(a) - b) grad log pi(a)
            b     <- decay * b + (1 - decay) * mean of R - tau log pi(a)

On the batch alone, with tau = 0 and rewards for ranks, this is the paper's update; with tau > 0 the mean of -log pi(a)
estimates the policy's entropy, and tau is what it is worth. On all that is remembered the step lowers the mean of
(R - tau log pi(a) - b)^2 / (2 tau), b and tau held constant, whichever policy drew a. That error is 0 if pi(a) =
exp((R - b) / tau) for every a: the best are the most probable, and nothing is forgotten. It is the log-variance or
trajectory-balance loss, or path consistency (Richter et al. 2020, Malkin et al. 2022, Nachum et al. 2017).

    search = PolicyGradient(Controller(num_choices=[4, 4, 4]))
    for metrics in search.search(evaluate=sum, num_children=40):  # any function from actions to a reward
        print(metrics)
    print(search.best)
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import groupby, product

import torch

from controller import Controller, Rollout
from utils import one_thread

Actions = tuple[int, ...]
DRAWN = 200  # samples that are drawn at once, to look for new ones
PAPER = dict(children_per_update=8, update_lag=0, lr=0.0006, entropy_weight=0.0, reward_scale="none", replay=0)  # §4.1
MOST_LISTED = 2**15  # sequences of a space in which the last new ones are found by going through all


@dataclass(eq=False)
class PolicyGradient:
    """Search with the policy gradient: `ask()` for what is to be evaluated, `tell()` the rewards."""

    controller: Controller
    _: KW_ONLY
    children_per_update: int = 2  # m (§3.2)
    update_lag: int = 4  # updates between a batch's sampling and its own; one batch more is in training
    lr: float = 0.02  # of Adam; with replay divided by sqrt(1 + children / c), c: the choices of all tokens added up
    entropy_weight: float = 0.7  # what a uniform policy's entropy is worth, in standard deviations of R
    baseline_decay: float = 0.5  # of the moving average b, per update
    reward_scale: str = "rank"  # R is the reward's rank among those so far, -1 worst to 1 best; "none": the reward
    replay: int = 1000  # how many children, the latest, are remembered by an update; 0: only the batch (§3.2)
    patience: int = 2000  # samples in a row with nothing new after which a large space counts as searched
    num_steps: Callable[[int], int | None] = lambda children: None  # of the controller, for growing depth; None: all
    allowed: Callable[[Actions], bool] | None = None  # other sequences are left out, at no cost
    seed: int = 0  # of the sampling

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.controller.parameters(), lr=self.lr)
        self.generator = torch.Generator().manual_seed(self.seed)
        self.asked: dict[Actions, int] = {}  # the number of every sequence that had to be evaluated, in order
        self.refused: set[Actions] = set()  # sequences that are not allowed
        self.out: deque[list[Actions]] = deque()  # batches that were asked for and not told yet
        self.reward_of: dict[Actions, float] = {}  # of every sequence that was told, in that order; -inf: failed
        self.baseline = 0.0  # b
        self.drawn: Rollout | None = None  # the latest samples of the policy
        self.updates = self.samples = self.samples_without_new = 0

    def search(self, evaluate: Callable[[Actions], float], num_children: int) -> Iterator[dict]:
        """Yield each update's metrics until `num_children` sequences are evaluated, or `stopped_early` says why not."""
        pending: deque[list[Actions]] = deque()
        while pending or not self.done(num_children):
            while len(pending) <= self.update_lag and not self.done(num_children):
                pending.append(self.ask(num_children))
            batch = pending.popleft()
            yield self.tell(batch, [evaluate(actions) for actions in batch])

    @one_thread()
    def ask(self, num_children: float = math.inf) -> list[Actions]:
        """Sample the next batch; returns what must be evaluated, which is allowed and was never asked for before.

        Cut where `num_children` have been asked for. To evaluate in parallel, first ask for `update_lag` + 1 batches.
        """
        batch, before = [], len(self.asked)
        for sequence in self.sample():
            if len(batch) == self.children_per_update or len(self.asked) >= num_children:
                break
            self.samples_without_new += 1
            if sequence not in self.asked and self.is_allowed(sequence):
                self.asked[sequence] = len(self.asked)
                self.samples_without_new = 0
                batch.append(sequence)
            elif sequence in self.asked and not self.replay:  # on the paper's way a network may be sampled again
                batch.append(sequence)
        self.out.append(batch)
        return list(self.asked)[before:]

    def sample(self) -> Iterator[Actions]:
        """Samples of the policy; if only known ones come up in a small space, new ones, drawn without replacement."""
        steps = self.num_steps(len(self.asked))
        choices = self.controller.token_choices(steps)
        while self.samples_without_new < (min(self.patience, math.prod(choices)) if self.replay else self.patience):
            with torch.no_grad():
                self.drawn = self.controller(None, DRAWN, self.generator, steps)
            yield from map(tuple, self.drawn.actions.tolist())
        small = self.replay and math.prod(choices) <= MOST_LISTED
        if small and (new := [a for a in product(*map(range, choices)) if a not in self.asked and self.is_allowed(a)]):
            share = self.controller(torch.tensor(new)).log_prob.sum(1).detach().softmax(0)  # (new,)
            yield from (new[i] for i in share.clamp(1e-300).multinomial(len(new), generator=self.generator))

    def is_allowed(self, sequence: Actions) -> bool:
        """Whether a sequence may be evaluated; what was refused is remembered."""
        if sequence not in self.refused and self.allowed is not None and not self.allowed(sequence):
            self.refused.add(sequence)
        return sequence not in self.refused

    @one_thread()
    def tell(self, batch: Sequence[Actions], rewards: Sequence[float]) -> dict:
        """Learn from the rewards of the oldest batch that is out, on any real scale; returns the update's metrics.

        -inf says that an evaluation failed. ValueError for NaN, and for another batch.
        """
        samples = self.out[0] if self.out else []
        new = [sequence for sequence in dict.fromkeys(samples) if sequence not in self.reward_of]
        if not self.out or list(map(tuple, batch)) != new or len(rewards) != len(new):
            raise ValueError("tell() takes the oldest batch that was asked for and not told, and all its rewards")
        if not all(reward < math.inf for reward in rewards):
            raise ValueError(f"rewards must be numbers, or -inf for what failed, not {rewards}")
        self.out.popleft()
        self.reward_of.update(zip(new, map(float, rewards), strict=True))
        good = [self.reward_of[sample] for sample in samples if self.reward_of[sample] > -math.inf]
        self.samples += len(samples)
        metrics = {"update": self.updates, "samples": self.samples, "children": len(self.reward_of)}
        metrics |= {"reward": sum(good) / (len(good) or 1), "best_reward": self.best[1], "baseline": self.baseline}
        metrics["entropy"] = self.drawn.entropy.sum(1).mean().item()
        self.updates += 1
        children = list(self.reward_of)[-self.replay :] if self.replay else samples
        return metrics | {"loss": self.update(children) if children else 0.0}

    def update(self, children: list[Actions]) -> float:
        """One step of Adam; without replay it is REINFORCE (§3.2) with an entropy bonus; returns the loss."""
        log_prob, tau = self.score(children)  # (n,), (n,)
        R = self.scaled([self.reward_of[child] for child in children])  # (n,)

        loss = -((R - tau * log_prob - self.baseline).detach() * log_prob).mean()

        if self.replay:  # the rate falls as children accumulate: one noisy reward shall move less
            self.optimizer.param_groups[0]["lr"] = self.lr / math.sqrt(1 + len(self.reward_of) / self.total_choices)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        mean = (R - tau * log_prob).mean().item()
        self.baseline = self.baseline_decay * self.baseline + (1 - self.baseline_decay) * mean
        return loss.item()

    def score(self, children: Sequence[Actions]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each child log pi (n,) and tau (n,) = entropy_weight * std(R) / log N; N networks are as deep as it."""
        depths = [torch.tensor(list(depth)) for _, depth in groupby(children, key=len)]  # (n of this depth, T)
        log_prob = torch.cat([self.controller(depth).log_prob.sum(1) for depth in depths])
        log_n = [sum(map(math.log, self.controller.token_choices()[: len(child)])) or 1.0 for child in children]
        spread = self.scaled(self.reward_of.values()).std(correction=0)
        return log_prob, self.entropy_weight * spread / log_prob.new_tensor(log_n)

    def scaled(self, rewards: Collection[float]) -> torch.Tensor:
        """R of these rewards (n,): their ranks among all so far, or the rewards; what failed is the worst."""
        chosen, known = (torch.tensor(list(some), dtype=torch.float64) for some in (rewards, self.reward_of.values()))
        if self.reward_scale == "none":
            finite = known[known.isfinite()]
            return chosen.clamp(min=finite.min() if len(finite) else 0)
        ordered = known.sort().values
        below, up_to = (torch.searchsorted(ordered, chosen, right=right) for right in (False, True))
        return (below + up_to).double() / len(ordered) - 1  # ties in the middle

    @torch.no_grad()
    def ranking(self, rewards: dict[Actions, Sequence[float]]) -> list[Actions]:
        """These sequences, the best first: by (R of their mean reward) + w tau log pi, the policy's estimate of R - b.

        The weight w = n / (n + 4c) grows with the n children learned from; c are the choices of all tokens added up.
        """
        log_prob, tau = self.score(list(rewards))
        value = self.scaled([sum(some) / len(some) for some in rewards.values()]) + self.trust * tau * log_prob
        return [list(rewards)[i] for i in value.argsort(descending=True, stable=True)]

    @property
    def trust(self) -> float:
        """The weight of the policy's estimate in the ranking, from 0 to 1."""
        return len(self.reward_of) / (len(self.reward_of) + 4 * self.total_choices)

    @property
    def total_choices(self) -> int:
        """c, the choices of all tokens added up, of the present depth."""
        return sum(self.controller.token_choices(self.num_steps(len(self.asked))))

    def done(self, num_children: int) -> bool:
        """Whether nothing more is to be asked for."""
        return len(self.asked) >= num_children or self.stopped_early is not None

    @property
    def best(self) -> tuple[Actions, float]:
        """The sequence with the highest reward, of equal ones the earliest, and that reward."""
        return max(self.reward_of.items(), key=lambda item: item[1], default=((), -math.inf))

    @property
    def stopped_early(self) -> str | None:
        """Why sampling ended before the budget was spent, or None."""
        choices, refused = self.controller.token_choices(self.num_steps(len(self.asked))), len(self.refused)
        if sum(len(a) == len(choices) for a in (*self.asked, *self.refused)) == math.prod(choices):
            left_out = f", {refused} are not allowed" if refused else ""
            return f"the space is exhausted: all {len(self.asked)} architectures were evaluated{left_out}"
        what = "that is allowed" if refused else "new"
        in_vain = f"{self.patience} samples of the policy in a row were nothing {what}"
        return in_vain if self.samples_without_new >= self.patience else None
