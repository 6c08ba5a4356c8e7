"""Rows of a journal, made by hand."""

import itertools
from datetime import UTC, datetime, timedelta

from graftwork.v1 import feedback_service_pb2 as pb
from graftwork.v1 import generation_service_pb2 as generation_pb
from graftwork_trainer.datasets.examples import Example, parse

STOP, LENGTH = generation_pb.FINISH_REASON_STOP, generation_pb.FINISH_REASON_LENGTH
START = datetime(2026, 1, 1, tzinfo=UTC)
_COUNTER = itertools.count()


def generation(name: str, completion: str, *, prompt: str = "2 + 2 = ?", **fields) -> pb.Generation:
    made = pb.Generation(
        id=name,
        group_id=fields.pop("group_id", f"group-of-{name}"),
        episode_id=fields.pop("episode_id", f"episode-of-{name}"),
        task=fields.pop("task", "sums"),
        completion=completion,
        finish_reason=fields.pop("finish_reason", STOP),
        **fields,
    )
    if not fields:
        made.conversation.messages.add(role="user", content=prompt)
    return made


def feedback(name: str, **fields) -> pb.Feedback:
    made = pb.Feedback(id=name, source=pb.FEEDBACK_SOURCE_HUMAN, **fields)
    made.create_time.FromDatetime(START)
    return made


def text_answer(text: str) -> pb.Answer:
    return pb.Answer(text=text)


def named_answer(name: str) -> pb.Answer:
    return pb.Answer(generation_id=name)


def example(number: int, **fields) -> Example:
    """An sft example; examples of different numbers have little in common."""
    words = " ".join(f"w{number * 7 + k}x{(number * 31 + k * k) % 97}" for k in range(12))
    value = {
        "format": "sft",
        "id": f"e{number:06d}",
        "task": "sums",
        "prompt": {"messages": [{"role": "user", "content": words}]},
        "create_time": (START + timedelta(minutes=number)).isoformat(),
    }
    if not {"completion", "chosen"} & fields.keys():
        fields["completion"] = f"answer {number}"
    return parse(value | fields)
