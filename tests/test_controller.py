"""The controller against enumeration of small spaces."""

import itertools

import pytest
import torch

from controller import Controller

NUM_CHOICES = (3, 2, 4)
ALL_ACTIONS = torch.tensor(list(itertools.product(*map(range, NUM_CHOICES))))  # (24, 3)


@pytest.fixture(params=[1, 2], ids=["one layer", "two layers"])
def controller(request) -> Controller:
    torch.manual_seed(0)
    controller = Controller(NUM_CHOICES, hidden_size=8, num_layers=request.param).double()
    for parameter in controller.parameters():  # far from uniform, or every test would be easy
        torch.nn.init.normal_(parameter)
    return controller


def test_probabilities_of_all_sequences_sum_to_one(controller):
    assert controller(ALL_ACTIONS).log_prob.sum(1).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_entropy_equals_enumeration(controller):
    _, log_prob, entropy = controller(ALL_ACTIONS)
    probability = log_prob.sum(1).exp()
    by_enumeration = -(probability * log_prob.sum(1)).sum()
    # the chain rule: the entropy of the whole is the expected sum of the steps' conditional entropies
    assert (probability * entropy.sum(1)).sum().item() == pytest.approx(by_enumeration.item(), abs=1e-12)


def test_scoring_samples_gives_the_log_probabilities_they_were_sampled_with(controller):
    sampled = controller(num_samples=50, generator=torch.Generator().manual_seed(1))
    scored = controller(sampled.actions)
    torch.testing.assert_close(scored.log_prob, sampled.log_prob)
    torch.testing.assert_close(scored.entropy, sampled.entropy)


def test_samples_follow_the_policy(controller):
    n = 20_000
    actions = controller(num_samples=n, generator=torch.Generator().manual_seed(2)).actions
    probability = controller(ALL_ACTIONS).log_prob.sum(1).exp()
    for sequence, p in zip(ALL_ACTIONS, probability, strict=True):
        share = (actions == sequence).all(1).double().mean().item()
        assert share == pytest.approx(p.item(), abs=5 * (p.item() / n) ** 0.5 + 1e-3)


def test_every_token_depends_on_the_first_one(controller):
    """Autoregression: another first token changes the distribution of the second and of the third."""
    actions = torch.tensor([[0, 0, 0], [1, 0, 0]])
    log_prob = controller(actions).log_prob
    assert (log_prob[0, 1:] - log_prob[1, 1:]).abs().min() > 1e-6


def test_sampling_is_reproducible_from_the_seed(controller):
    samples = [controller(num_samples=20, generator=torch.Generator().manual_seed(s)).actions for s in (3, 3, 4)]
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


def test_steps_of_the_same_name_share_head_and_embedding():
    shared = Controller([3, 2, 3, 2], names=["a", "b", "a", "b"], hidden_size=8)
    assert set(shared.heads) == set(shared.embeddings) == {"a", "b"}
    deeper = Controller([3, 2] * 3, names=["a", "b"] * 3, hidden_size=8)
    deeper.load_state_dict(shared.state_dict())  # depth changes no weight
    torch.testing.assert_close(
        deeper(torch.tensor([[0, 1, 2, 0, 1, 1]])).log_prob[:, :4], shared(torch.tensor([[0, 1, 2, 0]])).log_prob
    )


@pytest.mark.parametrize("num_choices, names", [([], None), ([3, 3], ["a"]), ([3, 2], ["a", "a"])])
def test_impossible_spaces_are_refused(num_choices, names):
    with pytest.raises(ValueError, match="choices"):
        Controller(num_choices, names=names)


def test_the_first_policy_is_nearly_uniform():
    torch.manual_seed(0)
    probability = Controller([5, 5, 5])(torch.tensor(list(itertools.product(range(5), repeat=3)))).log_prob.sum(1).exp()
    assert probability.max() / probability.min() < 2


def test_preferences_are_shares_of_samples():
    torch.manual_seed(0)
    controller = Controller([3, 5])
    torch.nn.init.constant_(controller.heads["step_0"].bias, 0)
    with torch.no_grad():
        controller.heads["step_0"].bias[2] = 50.0  # certain
    first, second = controller.preferences(num_samples=100)
    assert first == [0, 0, 1]
    assert len(second) == 5 and sum(second) == pytest.approx(1)
