"""What tests of the journal put in."""

import itertools
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from graftwork.v1 import feedback_service_pb2 as pb
from graftwork.v1 import generation_service_pb2 as generation_pb
from graftwork_trainer.journal.parsing import parse_submission
from graftwork_trainer.journal.records import Draft

DAY_NS = 86_400 * 10**9


class Ids:
    """UUIDv7 of the clock's time, in order."""

    def __init__(self, clock: "Clock") -> None:
        self._clock = clock
        self._numbers = itertools.count(1)

    def new(self) -> str:
        value = (self._clock() // 1_000_000) << 80 | 0x7 << 76 | 0b10 << 62 | next(self._numbers)
        text = f"{value:032x}"
        return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


class Clock:
    """Unix time in nanoseconds; moves when told to."""

    def __init__(self) -> None:
        self.now_ns = 1_800_000_000 * 10**9

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, days: float) -> None:
        self.now_ns += int(days * DAY_NS)


@dataclass
class Observer:
    queue: int = 0
    failures: int = 0
    generations: Counter[str] = field(default_factory=Counter)
    feedback: Counter[str] = field(default_factory=Counter)

    def set_journal_queue(self, generations: int) -> None:
        self.queue = generations

    def count_journal_generations(self, result: str, number: int) -> None:
        self.generations[result] += number

    def count_journal_failure(self) -> None:
        self.failures += 1

    def count_feedback(self, kind: str, number: int) -> None:
        self.feedback[kind] += number


def generation(ids: Ids, clock: Clock, **values: Any) -> pb.Generation:
    """A small one of its own group, begun now."""
    made = pb.Generation(
        **{
            "id": ids.new(),
            "group_id": ids.new(),
            "task": "talk",
            "origin": generation_pb.ORIGIN_USER,
            "served_by": generation_pb.ServedBy(adapter="poet", version=2, digest="d"),
            "completion": "an answer\0 with a null, 🙂",
            "prompt_token_ids": [1, 2],
            "completion_token_ids": [3, 4, 5],
            "completion_logprobs": [-0.5, -1.25, 0],
            "sampling": generation_pb.SamplingParams(seed=2**63, logit_bias={4: 0.5}),
            "finish_reason": generation_pb.FINISH_REASON_STOP,
            "template_hash": "",
            **values,
        }
    )
    if made.WhichOneof("input") is None:
        made.text = "a prompt\0 with a null"
    made.create_time.FromNanoseconds(clock())
    made.finish_time.FromNanoseconds(clock() + 1000)
    return made


def draft(request_id: str = "", **values: Any) -> Draft:
    """Checked as the service checks it."""
    feedback = pb.Feedback(**values)
    return parse_submission(pb.SubmitFeedbackRequest(feedback=feedback, request_id=request_id))


def prompt(text: str = "p", task: str = "talk", **values: Any) -> pb.InlinePrompt:
    return pb.InlinePrompt(text=text, task=task, **values)


def wait_for(condition: Any, timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.005)
