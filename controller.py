"""The controller: an LSTM that writes an architecture down token by token (paper §3.1).

It knows nothing of networks, only how many choices there are at each step:

    controller = Controller(num_choices=[3, 3, 5])
    actions, log_prob, entropy = controller(num_samples=8)      # sample
    _, log_prob, entropy = controller(actions)                  # score the same actions again
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Categorical


class Rollout(NamedTuple):
    actions: Tensor  # (n, T) int64, the index of the choice made at each step
    log_prob: Tensor  # (n, T) log pi(a_t | a_<t)
    entropy: Tensor  # (n, T) entropy of pi(. | a_<t), in nats


class Controller(nn.Module):
    """Autoregressive LSTM policy over sequences of T discrete choices (§3.1).

    `num_choices[t]` is the number of choices at step t. Steps with the same entry in `names` share their output
    head and their embedding, so that depth can grow; without `names` every step has its own.
    """

    def __init__(
        self, num_choices: Sequence[int], names: Sequence[str] | None = None, hidden_size: int = 64, num_layers: int = 1
    ) -> None:
        super().__init__()
        self.num_choices = tuple(num_choices)
        self.names = tuple(names) if names is not None else tuple(f"step_{t}" for t in range(len(self.num_choices)))
        if not self.num_choices or len(self.names) != len(self.num_choices):
            raise ValueError("num_choices and names need the same length, at least 1")
        choices_of = dict(zip(self.names, self.num_choices, strict=True))
        if any(choices_of[name] != n for name, n in zip(self.names, self.num_choices, strict=True)):
            raise ValueError("steps of the same name must have the same number of choices")

        self.first_input = nn.Parameter(torch.empty(hidden_size))
        self.cells = nn.ModuleList(nn.LSTMCell(hidden_size, hidden_size) for _ in range(num_layers))
        self.embeddings = nn.ModuleDict({name: nn.Embedding(n, hidden_size) for name, n in choices_of.items()})
        self.heads = nn.ModuleDict({name: nn.Linear(hidden_size, n) for name, n in choices_of.items()})
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.08, 0.08)  # §4.1; the first policy is nearly uniform

    def forward(
        self,
        actions: Tensor | None = None,  # (n, T)
        num_samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> Rollout:
        """Score the given `actions`, or sample `num_samples` new ones: one path for both."""
        n = num_samples if actions is None else len(actions)
        x = self.first_input.expand(n, -1)  # (n, H)
        states = [(torch.zeros_like(x), torch.zeros_like(x)) for _ in self.cells]
        chosen, log_prob, entropy = [], [], []
        for t, name in enumerate(self.names):
            for layer, cell in enumerate(self.cells):
                states[layer] = cell(x, states[layer])
                x = states[layer][0]  # (n, H)
            policy = Categorical(logits=self.heads[name](x))  # (n, num_choices[t])
            # Categorical.sample() takes no generator
            action = torch.multinomial(policy.probs, 1, generator=generator)[:, 0] if actions is None else actions[:, t]
            chosen.append(action)
            log_prob.append(policy.log_prob(action))
            entropy.append(policy.entropy())
            x = self.embeddings[name](action)  # the chosen token is the next input
        return Rollout(torch.stack(chosen, 1), torch.stack(log_prob, 1), torch.stack(entropy, 1))

    @torch.no_grad()
    def preferences(self, num_samples: int = 256, seed: int = 0) -> list[list[float]]:
        """Share of each choice at each step, T lists of num_choices[t], among `num_samples` fresh samples."""
        generator = torch.Generator().manual_seed(seed)
        actions = self(num_samples=num_samples, generator=generator).actions
        counts = (torch.bincount(actions[:, t], minlength=n) for t, n in enumerate(self.num_choices))
        return [(count / num_samples).tolist() for count in counts]
