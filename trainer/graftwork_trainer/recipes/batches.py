"""Batches of token ids: packed without padding, or padded where virtual tokens come first."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from graftwork_trainer.base.completion_loss import IGNORED
from graftwork_trainer.recipes.tokenization import TokenizedExample

Row = dict[str, list[int]]  # "input_ids" and "labels"


def row_of(example: TokenizedExample, *, train_on_prompt: bool) -> Row:
    """Token ids, and what is learned of them; nothing predicts the first."""
    prompt = list(example.prompt) if train_on_prompt else [IGNORED] * len(example.prompt)
    labels = [*prompt, *example.completion]
    labels[0] = IGNORED
    return {"input_ids": [*example.prompt, *example.completion], "labels": labels}


def packed(rows: Sequence[Row]) -> dict[str, Any]:
    """All rows end to end: input_ids, position_ids and labels (1, num_tokens) int64, and lengths
    (num_rows,)."""
    lengths = [len(row["input_ids"]) for row in rows]
    return {
        "input_ids": torch.tensor([[t for row in rows for t in row["input_ids"]]]),
        "labels": torch.tensor([[t for row in rows for t in row["labels"]]]),
        "position_ids": torch.cat([torch.arange(n) for n in lengths]).unsqueeze(0),
        "lengths": torch.tensor(lengths),
    }


def padded(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows padded on the right: input_ids, attention_mask and labels (num_rows, longest) int64."""
    input_ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]

    def pad(tensors: list[Tensor], value: int) -> Tensor:
        return pad_sequence(tensors, batch_first=True, padding_value=value)

    return {
        "input_ids": pad(input_ids, 0),
        "labels": pad(labels, IGNORED),
        "attention_mask": pad([torch.ones_like(ids) for ids in input_ids], 0),
    }
