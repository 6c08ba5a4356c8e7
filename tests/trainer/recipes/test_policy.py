"""A policy seen at the tokens of its answers, against a plain pass over each answer."""

import pytest
import torch
from graftwork_trainer.base.packed_rows import PACKED_ATTENTION
from graftwork_trainer.datasets.prompts import Text
from graftwork_trainer.methods.attach import attach_adapter
from graftwork_trainer.recipes import policy
from graftwork_trainer.recipes.policy import AnswerTokens, look, look_at_all
from graftwork_trainer.rl.value_head import ValueHead
from graftwork_trainer.rollouts import Rollout

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]}


@pytest.fixture
def adapter(written_base):
    torch.manual_seed(0)
    model = written_base().load().fresh_model()
    adapter = attach_adapter(model, "LORA", LORA, frozen_layers=0, total_steps=1)
    model.set_attn_implementation(PACKED_ATTENTION)
    for name, parameter in adapter.model.named_parameters():
        if "lora_B" in name:  # they begin at zero
            torch.nn.init.normal_(parameter, std=0.1)
    return adapter


@pytest.fixture
def answers():
    lengths = [(3, 5), (1, 1), (7, 4), (2, 6)]
    rollouts = []
    for number, (prompt, answer) in enumerate(lengths):
        ids = [(7 * number + 3 * place) % 50 + 1 for place in range(prompt + answer)]
        rollouts.append(
            Rollout(
                prompt=Text("?"),
                group=number,
                prompt_ids=tuple(ids[:prompt]),
                token_ids=tuple(ids[prompt:]),
                logprobs=(0.0,) * answer,
                text="!",
                is_truncated=False,
                generation_id="",
            )
        )
    return AnswerTokens.of(rollouts)


@pytest.fixture(params=[3, 4, 16, 256], ids="{} rows at once".format)
def rows_at_once(request, monkeypatch):
    monkeypatch.setattr(policy, "_ROWS_AT_ONCE", request.param)


@pytest.mark.usefixtures("rows_at_once")
def test_packed_answers_look_like_each_alone(adapter, answers, monkeypatch):
    monkeypatch.setattr(policy, "_MAX_TOKENS", 12)
    head = ValueHead(adapter.base.config.hidden_size)
    torch.nn.init.normal_(head.linear.weight)
    seen = look_at_all(adapter.base, answers, head)

    adapter.base.set_attn_implementation("sdpa")
    for row, rollout in enumerate(answers.rollouts):
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.token_ids]])
        with torch.no_grad():
            output = adapter.base(input_ids=ids, output_hidden_states=True, use_cache=False)
            values = head(output.hidden_states[-1])[0, len(rollout.prompt_ids) - 1 : -1]
        logprobs = output.logits[0].log_softmax(-1)[len(rollout.prompt_ids) - 1 : -1]
        expected = logprobs.gather(1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
        mask = answers.mask[row]
        torch.testing.assert_close(seen.logprobs[row, mask], expected, atol=1e-5, rtol=1e-5)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        torch.testing.assert_close(seen.entropy[row, mask], entropy, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(seen.values[row, mask], values, atol=1e-5, rtol=1e-5)
        assert not seen.logprobs[row, ~mask].any()


@pytest.mark.usefixtures("rows_at_once")
def test_gradients_are_those_of_plain_passes(adapter, answers):
    weights = torch.randn(answers.mask.shape, generator=torch.Generator().manual_seed(1))
    trained = [p for p in adapter.model.parameters() if p.requires_grad]
    seen = look(adapter.base, answers)
    objective = (weights * (seen.logprobs + 0.1 * seen.entropy)).sum()
    found = torch.autograd.grad(objective, trained)

    adapter.base.set_attn_implementation("sdpa")
    total = torch.zeros(())
    for row, rollout in enumerate(answers.rollouts):
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.token_ids]])
        logits = adapter.base(input_ids=ids, use_cache=False).logits[0]
        logprobs = logits.log_softmax(-1)[len(rollout.prompt_ids) - 1 : -1]
        chosen = logprobs.gather(1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        total = total + (weights[row, answers.mask[row]] * (chosen + 0.1 * entropy)).sum()
    for one, other in zip(found, torch.autograd.grad(total, trained), strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
