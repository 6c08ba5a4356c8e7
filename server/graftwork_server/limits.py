"""What the scheduler takes on, and how it refuses more.

It refuses with errors.QueueFull and, here,

WireError
└── ContextTooLongError  INVALID_ARGUMENT    CONTEXT_TOO_LONG
"""

from dataclasses import dataclass

import grpc
from graftwork.status import WireError


class ContextTooLongError(WireError):
    """Prompt and answer together fit neither the context nor the key/value cache."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "CONTEXT_TOO_LONG"


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    max_num_sequences: int  # running at once
    max_tokens_per_step: int  # at least max_num_sequences, so that each runner gets on each step
    block_size: int  # positions per block
    num_blocks: int
    max_context: int  # tokens of prompt and output together
    max_queued: int  # sequences waiting at once
    max_slots: int
    max_slot_bytes: int | None = None
    # Of prompts, in a step that also decodes: bounds how long a stream waits for its next token.
    max_prefill_tokens_while_decoding: int | None = None
    # Of all sequences with a negative priority together, in a step beside others: what works in the
    # background, such as a training job's rollouts, must not slow the streams of users.
    max_background_tokens: int | None = None
    prefix_cache: bool = True  # whether prompts that begin alike share blocks
    slot_patience_s: float = 1.0  # how long a version waits, and is kept, before another's turn

    def __post_init__(self) -> None:
        for name in (
            "max_num_sequences",
            "block_size",
            "num_blocks",
            "max_context",
            "max_queued",
            "max_slots",
            "max_prefill_tokens_while_decoding",
            "max_background_tokens",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.max_tokens_per_step < self.max_num_sequences:
            raise ValueError("max_tokens_per_step must be at least max_num_sequences")
        if self.slot_patience_s < 0:
            raise ValueError("slot_patience_s must not be negative")
