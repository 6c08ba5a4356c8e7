"""A reward model from comparisons (Bradley and Terry, 1952; Christiano et al., 2017), by TRL: an
adapter with a head of one label on the same base, served through Score.

It scores the last token of prompt and completion, without an end token: what Score does.
"""

import copy
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from datasets import Dataset
from graftwork.status import InvalidFieldError
from peft import PeftConfig, get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, Trainer
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from graftwork_trainer.base.model import TrainingBase
from graftwork_trainer.methods.attach import AttachedAdapter, carried_prompt
from graftwork_trainer.methods.catalogue import find_method
from graftwork_trainer.methods.configure import configure
from graftwork_trainer.recipes.common import training_arguments
from graftwork_trainer.recipes.options import RewardOptions
from graftwork_trainer.recipes.preferences import (
    PretokenizedTrainer,
    Row,
    Rows,
    check_format,
    own_tokenizer,
    padded_attention,
    train_by_trl,
)
from graftwork_trainer.recipes.run import TrainingRun
from graftwork_trainer.recipes.tokenization import (
    ExampleTokenizer,
    TokenizedExample,
    prompt_of,
    read_lines,
    text_of,
)

_FORMATS = ("reward", "preference")

_CALIBRATION_BINS = 10


class _Trainer(PretokenizedTrainer, RewardTrainer):
    pass


def train_reward(run: TrainingRun, options: Mapping[str, Any] | None = None) -> Path:
    """Trains a reward adapter; errors as `preferences.train_by_trl`.

    The summary's metrics have `accuracy` on the validation pairs, and `calibration_error`: how far
    the share of pairs won lies from the probability that the rewards give them.
    """
    chosen = RewardOptions.parse(options or {})
    if run.initial is not None:
        raise InvalidFieldError("initial_version", "a reward model begins anew: leave it out")

    def make_trainer(
        adapter: AttachedAdapter, train: Dataset, validation: Dataset | None, total_steps: int
    ) -> Trainer:
        return _Trainer(
            model=adapter.model,
            args=RewardConfig(
                **training_arguments(run, adapter.method, total_steps),
                per_device_eval_batch_size=run.hyperparameters.batch_size,
                center_rewards_coefficient=chosen.center_rewards or None,
                max_length=None,
            ),
            train_dataset=train,
            eval_dataset=validation,
            processing_class=own_tokenizer(run),
        )

    return train_by_trl(run, _read, make_trainer, make_model=_attached, after=_held_out_figures)


def reward_model(base: TrainingBase) -> PreTrainedModel:
    """The base with a head of one label, a tree of its own over the base's weights."""
    causal = base.fresh_model()
    config = copy.deepcopy(causal.config)
    config.num_labels = 1
    with init_empty_weights():
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    setattr(model, model.base_model_prefix, causal.base_model)
    head = nn.Linear(config.hidden_size, 1, bias=False)
    nn.init.normal_(head.weight, std=(config.hidden_size + 1) ** -0.5)
    model.score = head
    return model


def _attached(run: TrainingRun, total_steps: int) -> AttachedAdapter:
    method = find_method(run.method)
    config = configure(
        run.base.model,
        run.method,
        run.method_config,
        frozen_layers=run.hyperparameters.frozen_layers,
        total_steps=total_steps,
    )
    if not isinstance(config, PeftConfig):
        raise InvalidFieldError("method", f"{run.method} cannot carry a reward head: take LORA")
    config.task_type = "SEQ_CLS"
    model = reward_model(run.base)
    padded_attention(model)
    return AttachedAdapter(get_peft_model(model, config), model, method, config)


def _read(run: TrainingRun, path: Path) -> Rows:
    """Rows of `chosen_ids`, `rejected_ids` and `margin`.

    A tie is two opposite comparisons: their loss is least where both rewards are equal. Answers
    that came with a number are compared with the others to the same prompt. Raises
    InvalidFieldError.
    """
    tokenizer = ExampleTokenizer(run.base, carried_prompt(run.initial))
    found = Rows()
    rated: dict[tuple[int, ...], list[tuple[float, tuple[int, ...]]]] = defaultdict(list)
    num_ties = 0
    for name, value in read_lines(path):
        check_format(value, _FORMATS, name)
        prompt = prompt_of(value, name)
        if "reward" in value:
            example = tokenizer.tokenize(
                prompt, text_of(value, "completion", name), name, ends=False
            )
            rated[example.prompt].append((_reward_of(value, name), _ids(example)))
            continue
        pair = [
            _ids(tokenizer.tokenize(prompt, text_of(value, key, name), name, ends=False))
            for key in ("chosen", "rejected")
        ]
        is_tie = bool(value.get("tie", False))
        num_ties += is_tie
        _add(run, found, pair, float(value.get("margin") or 0.0))
        if is_tie:
            _add(run, found, pair[::-1], 0.0)
    for answers in rated.values():
        for (one, ids), (other, other_ids) in itertools.combinations(answers, 2):
            if one != other:
                _add(run, found, [ids, other_ids] if one > other else [other_ids, ids], 0.0)
    if path == run.train and found.rows and len(found.rows) == 2 * num_ties:
        raise InvalidFieldError("dataset", f"all {num_ties} comparisons are ties")
    return found


def _ids(example: TokenizedExample) -> tuple[int, ...]:
    return (*example.prompt, *example.completion)


def _reward_of(value: Mapping[str, Any], name: str) -> float:
    reward = value["reward"]
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
        raise InvalidFieldError(f"{name}.reward", "must be a finite number")
    return float(reward)


def _add(run: TrainingRun, found: Rows, pair: Sequence[tuple[int, ...]], margin: float) -> None:
    if pair[0] == pair[1]:
        found.equal += 1
    elif max(map(len, pair)) > run.hyperparameters.max_length:
        found.too_long += 1
    else:
        found.rows.append(
            {"chosen_ids": list(pair[0]), "rejected_ids": list(pair[1]), "margin": margin}
        )


@torch.no_grad()
def _held_out_figures(adapter: AttachedAdapter, rows: list[Row]) -> Mapping[str, float]:
    """The share of pairs won, where TRL's is a mean over batches of any size, and the expected
    calibration error of sigmoid(chosen - rejected), over bins of the confidence.

    Seen from the side that the model prefers: its confidence is at least one half, and a pair is
    won where that side is the chosen one.
    """
    adapter.model.eval()
    collate = DataCollatorForPreference(pad_token_id=adapter.base.config.pad_token_id)
    margins = []
    for start in range(0, len(rows), 8):
        batch = collate([{**row} for row in rows[start : start + 8]])
        batch.pop("margin")
        chosen, rejected = adapter.model(**batch, use_cache=False).logits.squeeze(-1).chunk(2)
        margins.append(chosen - rejected)
    margin = torch.cat(margins)
    confidence, is_won = margin.abs().sigmoid(), (margin > 0).float()
    bins = ((confidence - 0.5) * 2 * _CALIBRATION_BINS).long().clamp(max=_CALIBRATION_BINS - 1)
    error = 0.0
    for number in set(bins.tolist()):
        of_bin = bins == number
        gap = (confidence[of_bin].mean() - is_won[of_bin].mean()).abs()
        error += float(gap * of_bin.float().mean())
    return {"accuracy": float(is_won.mean()), "calibration_error": error}
