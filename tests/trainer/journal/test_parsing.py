"""Feedback whose own fields are not acceptable."""

import math

import pytest
from graftwork.status import InvalidFieldError
from graftwork.v1 import feedback_service_pb2 as pb
from graftwork.v1 import generation_service_pb2 as generation_pb
from graftwork_trainer.journal import parsing
from graftwork_trainer.journal.parsing import parse_submission

from tests.trainer.journal.helpers import draft, prompt

TEXT = pb.Answer(text="a")


def conversation(*roles: str) -> pb.InlinePrompt:
    messages = [generation_pb.Message(role=role, content=role) for role in roles]
    return pb.InlinePrompt(conversation=generation_pb.Conversation(messages=messages))


def ranking(*ranks: list[str]) -> pb.Ranking:
    return pb.Ranking(
        ranks=[pb.Ranking.Rank(answers=[pb.Answer(text=t) for t in rank]) for rank in ranks]
    )


@pytest.mark.parametrize(
    ("values", "field", "why"),
    [
        ({"thumbs": 1}, "target", "is missing"),
        ({"generation_id": "", "thumbs": 1}, "generation_id", "is empty"),
        ({"generation_id": "g\0", "thumbs": 1}, "generation_id", "null character"),
        ({"generation_id": "g"}, "value", "is missing: give one of thumbs"),
        ({"generation_id": "g", "thumbs": 0}, "thumbs", "THUMBS_UP or THUMBS_DOWN"),
        ({"generation_id": "g", "reward": math.nan}, "reward", "finite"),
        ({"generation_id": "g", "reward": -math.inf}, "reward", "finite"),
        ({"generation_id": "g", "label": " "}, "label", "is empty"),
        ({"generation_id": "g", "correction": ""}, "correction", "is empty"),
        ({"generation_id": "g", "demonstration": "\n"}, "demonstration", "is empty"),
        ({"generation_id": "g", "remark": ""}, "remark", "is empty"),
        ({"generation_id": "g", "thumbs": 1, "author": "a" * 257}, "author", "257 characters"),
        ({"generation_id": "g", "thumbs": 1, "comment": "\0"}, "comment", "null character"),
        ({"generation_id": "g", "thumbs": 1, "source": 9}, "source", "no source"),
        ({"group_id": "g", "correction": "a"}, "correction", "cannot be given on a whole group"),
        ({"episode_id": "e", "demonstration": "a"}, "demonstration", "thumbs, reward, label"),
        ({"prompt": pb.InlinePrompt(), "label": "a"}, "prompt.input", "is missing"),
        ({"prompt": prompt(""), "label": "a"}, "prompt.text", "is empty"),
        ({"prompt": prompt(task="No Name"), "label": "a"}, "prompt.task", "1 to 63 characters"),
        ({"prompt": prompt(), "thumbs": 1}, "thumbs", "end its conversation with the assistant"),
        ({"prompt": conversation("user"), "reward": 1}, "reward", "the prompt has none"),
        ({"prompt": conversation("king"), "label": "a"}, r"messages\[0\].role", "is 'king'"),
        (
            {"prompt": conversation(), "label": "a"},
            "prompt.conversation.messages",
            "at least one message",
        ),
        (
            {"generation_id": "g", "preference": pb.Preference(chosen=TEXT)},
            "preference.rejected",
            "is missing",
        ),
        (
            {"generation_id": "g", "preference": pb.Preference(chosen=TEXT, rejected=TEXT)},
            "preference.rejected",
            "is the same answer",
        ),
        (
            {
                "generation_id": "g",
                "preference": pb.Preference(chosen=TEXT, rejected=pb.Answer(text="b"), margin=-1),
            },
            "preference.margin",
            "at least 0",
        ),
        (
            {
                "generation_id": "g",
                "preference": pb.Preference(
                    chosen=TEXT, rejected=pb.Answer(text="b"), margin=1, tie=True
                ),
            },
            "preference.margin",
            "cannot go with a tie",
        ),
        ({"group_id": "g", "ranking": ranking(["a"])}, "ranking.ranks", "must have 2 to"),
        ({"group_id": "g", "ranking": ranking(["a"], [])}, r"ranks\[1\].answers", "is empty"),
        ({"group_id": "g", "ranking": ranking(["a"], ["b", "a"])}, r"answers\[1\]", "already"),
    ],
)
def test_refused_fields(values: dict, field: str, why: str) -> None:
    with pytest.raises(InvalidFieldError, match=why) as caught:
        draft(**values)
    assert caught.value.field.startswith("feedback.")
    with pytest.raises(InvalidFieldError, match=field):
        draft(**values)


def test_feedback_is_there_and_request_ids_are_uuids() -> None:
    with pytest.raises(InvalidFieldError, match="feedback: is missing"):
        parse_submission(pb.SubmitFeedbackRequest())
    with pytest.raises(InvalidFieldError, match="request_id: must be a UUID"):
        draft("mine", generation_id="g", thumbs=1)


def test_texts_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "MAX_TEXT_CHARACTERS", 3)
    with pytest.raises(InvalidFieldError, match="has 4 characters, and at most 3"):
        draft(generation_id="g", correction="abcd")


def test_an_inline_answer_can_be_judged() -> None:
    judged = draft(prompt=conversation("user", "assistant"), thumbs=2)
    assert judged.target.prompt.answer == "assistant"


@pytest.mark.parametrize("source", range(5))
def test_sources(source: int) -> None:
    names = ["human", "human", "model", "code", "implicit"]
    assert draft(generation_id="g", thumbs=1, source=source).source == names[source]
