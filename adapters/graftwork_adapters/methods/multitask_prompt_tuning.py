"""Multitask prompt tuning (Wang et al., 2023): a shared prompt times a low-rank matrix of the task.

A file holds every task; the version's task is folded in.
"""

from graftwork_adapters.canonical import LoweredAdapter
from graftwork_adapters.errors import InvalidArtifact
from graftwork_adapters.methods.base import LoweringInput, Method
from graftwork_adapters.methods.virtual_tokens import (
    CONSUMED,
    DESCRIBES_THE_BASE,
    EMBEDDINGS,
    SAVED_PREFIX,
    check_shape,
    check_tensors,
    check_token_dim,
    num_virtual_tokens,
)
from graftwork_adapters.peft_config import TASK_ID_FIELD

_COLUMNS = "prefix_task_cols"
_ROWS = "prefix_task_rows"


def lower(source: LoweringInput) -> LoweredAdapter:
    config = source.config
    count, width = num_virtual_tokens(source), check_token_dim(source)
    num_tasks, rank = config.positive_integer("num_tasks"), config.positive_integer("num_ranks")
    check_tensors(source, [EMBEDDINGS, _COLUMNS, _ROWS])
    prompt, columns, rows = (source.tensors[name] for name in (EMBEDDINGS, _COLUMNS, _ROWS))
    check_shape(EMBEDDINGS, prompt, (count, width), "num_virtual_tokens and token_dim")
    check_shape(
        _COLUMNS, columns, (num_tasks, count, rank), "num_tasks, num_virtual_tokens, num_ranks"
    )
    check_shape(_ROWS, rows, (num_tasks, rank, width), "num_tasks, num_ranks and token_dim")
    task = config.task_id
    if task is None and num_tasks > 1:
        raise InvalidArtifact(f"the file holds {num_tasks} tasks: choose one with task_id")
    task = task or 0
    if task >= num_tasks:
        raise InvalidArtifact(f"task_id is {task}, but the file holds {num_tasks} tasks, from 0")
    return LoweredAdapter(
        virtual_tokens=prompt.float() * (columns[task].float() @ rows[task].float())
    )


METHOD = Method(
    peft_type="MULTITASK_PROMPT_TUNING",
    consumed=CONSUMED | {"num_tasks", "num_ranks", TASK_ID_FIELD},
    lower=lower,
    saved_prefix=SAVED_PREFIX,
    inert={
        **DESCRIBES_THE_BASE,
        "prompt_tuning_init": "how training started",
        "prompt_tuning_init_text": "how training started",
        "prompt_tuning_init_state_dict_path": "how training started",
        "prompt_tuning_init_task": "how training started",
        "tokenizer_name_or_path": "how training started",
        "tokenizer_kwargs": "how training started",
    },
)
