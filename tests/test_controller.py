"""The controller against enumeration of small spaces."""

import itertools

import pytest
import torch

from controller import ANCHOR, Controller

NUM_CHOICES = (3, 2, 4)
WITH_ANCHORS = (3, ANCHOR, 2, ANCHOR, 2, ANCHOR)  # tokens: 3, 2, skip from 1, 2, skips from 1 and 2


@pytest.fixture(params=[(NUM_CHOICES, 1), (NUM_CHOICES, 2), (WITH_ANCHORS, 1)], ids=["one", "two layers", "anchors"])
def controller(request) -> Controller:
    torch.manual_seed(0)
    num_choices, num_layers = request.param
    controller = Controller(num_choices, hidden_size=8, num_layers=num_layers).double()
    for parameter in controller.parameters():  # far from uniform, or every test would be easy
        torch.nn.init.normal_(parameter)
    return controller


def all_actions(controller: Controller) -> torch.Tensor:
    """Every sequence there is, (product of the choices, T)."""
    return torch.tensor(list(itertools.product(*map(range, controller.token_choices))))


def test_probabilities_of_all_sequences_sum_to_one(controller):
    assert controller(all_actions(controller)).log_prob.sum(1).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_entropy_equals_enumeration(controller):
    _, log_prob, entropy = controller(all_actions(controller))
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
    probability = controller(all_actions(controller)).log_prob.sum(1).exp()
    for sequence, p in zip(all_actions(controller), probability, strict=True):
        share = (actions == sequence).all(1).double().mean().item()
        assert share == pytest.approx(p.item(), abs=5 * (p.item() / n) ** 0.5 + 1e-3)


def test_every_token_depends_on_the_first_one(controller):
    """Autoregression: another first token changes the distribution of the second and of the third."""
    actions = torch.zeros(2, len(controller.token_choices), dtype=torch.int64)
    actions[1, 0] = 1
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


def test_skips_have_the_attention_form_of_the_paper():
    """§3.3: P(layer j is an input of layer i) = sigmoid(v' tanh(W_prev h_j + W_curr h_i)), worked out by hand."""
    torch.manual_seed(0)
    controller = Controller([3, ANCHOR] * 3, names=["a", "anchor"] * 3, hidden_size=8).double()
    assert controller.token_choices == (3, 3, 2, 3, 2, 2)
    states = []
    hook = controller.cells[0].register_forward_hook(lambda *call: states.append(call[2][0]))
    log_prob = controller(torch.tensor([[0, 1, 1, 2, 0, 1]])).log_prob[0]
    hook.remove()
    first, second, third = states[1::2]  # the hidden states at the anchor points
    for token, (h_j, h_i), chosen in ((2, (first, second), 1), (4, (first, third), 0), (5, (second, third), 1)):
        w_prev, w_curr, v = controller.w_prev.weight, controller.w_curr.weight, controller.v.weight[0]
        p = torch.sigmoid(v @ torch.tanh(w_prev @ h_j[0] + w_curr @ h_i[0]))
        assert log_prob[token].exp().item() == pytest.approx((p if chosen else 1 - p).item(), abs=1e-12)


def test_the_first_tokens_can_be_sampled_and_scored_alone():
    """What growing depth needs: a shorter network from the same weights, with the same probabilities."""
    torch.manual_seed(0)
    controller = Controller([3, ANCHOR] * 3, names=["a", "anchor"] * 3, hidden_size=8)
    rollout = controller(num_samples=6, generator=torch.Generator().manual_seed(0), num_steps=4)
    assert rollout.actions.shape == (6, 3)  # 3, 3, skip
    shallow = Controller([3, ANCHOR] * 2, names=["a", "anchor"] * 2, hidden_size=8)
    shallow.load_state_dict(controller.state_dict())
    torch.testing.assert_close(shallow(rollout.actions).log_prob, controller(rollout.actions).log_prob)
    torch.testing.assert_close(rollout.log_prob, controller(rollout.actions).log_prob)


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
