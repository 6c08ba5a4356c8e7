"""Existing data sets, as JSON lines, read as feedback on inline prompts.

A line is an object in one of these forms, told apart by its fields:

    {"prompt": ..., "completion": "..."}                 a demonstration
    {"prompt": ..., "completion": "...", "label": true}  a thumbs on that answer, false is down
    {"messages": [...]}                                  what the assistant says last, likewise
    {"prompt": ..., "chosen": ..., "rejected": ...}      a preference; "margin" may be beside it
    {"chosen": [...], "rejected": [...]}                 the same, of conversations that part last
    {"prompt": ..., "label": "..."}                      the right class
    {"text": "...", "label": "..."}                      the same

A prompt is a text, or messages: [{"role": ..., "content": ...}]. Answers may be texts, or lists of
one assistant's message. "task", "episode_id", "author" and "comment" may be beside all of them.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from graftwork.cli.failures import Failure
from graftwork.feedback_types import Answer, FeedbackOptions, Preference
from graftwork.types import Message

_BESIDE = ("task", "episode_id", "author", "comment")


class LineError(ValueError):
    """What is wrong with a line."""


def read_feedback(path: Path, *, chat: bool) -> Iterator[tuple[int, FeedbackOptions, int]]:
    """The number of each line that is not empty, what it says, and the bytes read up to its end.

    `chat` puts prompts that are texts into a conversation, as its user. Raises Failure that names
    the line.
    """
    done = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            done += len(line)
            if not line.strip():
                continue
            try:
                yield number, parse_line(line, chat=chat), done
            except LineError as error:
                raise Failure(f"{path}, line {number}: {error}") from error


def read_prompts(path: Path, *, chat: bool) -> Iterator[str | list[Message]]:
    """The prompts in a file: the field "prompt" of each object in JSON lines, where its name ends
    with .jsonl, and else the lines themselves. `chat` as in `read_feedback`. Raises Failure that
    names the line."""
    is_json = path.suffix == ".jsonl"
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = _object(line).get("prompt") if is_json else _plain(line)
                yield _prompt(value, "prompt", chat=chat)
            except (LineError, UnicodeDecodeError) as error:
                raise Failure(f"{path}, line {number}: {error}") from error


def _plain(line: bytes) -> str:
    return line.decode("utf-8-sig").rstrip("\r\n")  # editors put a byte order mark before the first


def parse_line(line: bytes, *, chat: bool) -> FeedbackOptions:
    """Raises LineError."""
    record = _object(line)
    options = _options(record, chat=chat)
    for name in _BESIDE:
        if name in record:
            options[name] = _text(record, name)  # type: ignore[literal-required]
    return options


def _object(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LineError(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise LineError("not a JSON object")
    return record


def _options(record: Mapping[str, Any], *, chat: bool) -> FeedbackOptions:
    names = record.keys()
    if {"chosen", "rejected"} <= names:
        return _preference(record, chat=chat)
    if "messages" in names:
        *before, last = _messages(record["messages"], "messages")
        if not before or last.role != "assistant":
            raise LineError("messages: must end with the assistant's, after another")
        return {"prompt": before, "demonstration": last.content}
    if {"prompt", "completion"} <= names:
        prompt, answer = record["prompt"], _answer(record["completion"], "completion")
        if "label" not in names:
            return {"prompt": _prompt(prompt, "prompt", chat=chat), "demonstration": answer}
        if not isinstance(record["label"], bool):
            raise LineError("label: true or false is wanted beside a completion")
        asked = _prompt(prompt, "prompt", chat=True)
        return {"prompt": [*asked, Message("assistant", answer)], "thumbs": record["label"]}
    for name in ("prompt", "text"):
        if {name, "label"} <= names:
            asked = _prompt(record[name], name, chat=chat)
            return {"prompt": asked, "label": _label(record["label"])}
    known = "prompt and completion, messages, chosen and rejected, prompt and label, text and label"
    raise LineError(f"has {', '.join(sorted(names)) or 'no fields'}; wanted are {known}")


def _preference(record: Mapping[str, Any], *, chat: bool) -> FeedbackOptions:
    margin = record.get("margin")
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, int | float)):
        raise LineError("margin: not a number")
    if "prompt" in record:
        prompt = _prompt(record["prompt"], "prompt", chat=chat)
        chosen, rejected = (_answer(record[name], name) for name in ("chosen", "rejected"))
    else:
        *before, good = _messages(record["chosen"], "chosen")
        *other, bad = _messages(record["rejected"], "rejected")
        if not before or before != other:
            raise LineError("chosen and rejected: must be the same up to their last message")
        prompt, chosen, rejected = before, good.content, bad.content
    return {
        "prompt": prompt,
        "preference": Preference(Answer(chosen), Answer(rejected), margin),
    }


def _prompt(value: Any, name: str, *, chat: bool) -> str | list[Message]:
    if isinstance(value, str):
        return [Message("user", value)] if chat else value
    return _messages(value, name)


def _messages(value: Any, name: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise LineError(f"{name}: a text or a list of messages is wanted")
    messages = []
    for index, item in enumerate(value):
        if not isinstance(item, dict) or not {"role", "content"} <= item.keys():
            raise LineError(f'{name}[{index}]: {{"role": ..., "content": ...}} is wanted')
        messages.append(Message(_text(item, "role"), _text(item, "content")))
    return messages


def _answer(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    messages = _messages(value, name)
    if len(messages) != 1 or messages[0].role != "assistant":
        raise LineError(f"{name}: a text or one message of the assistant is wanted")
    return messages[0].content


def _label(value: Any) -> str:
    """Labels of many data sets are numbers."""
    if isinstance(value, bool | int):
        return json.dumps(value)
    if isinstance(value, str):
        return value
    raise LineError("label: a text or a whole number is wanted")


def _text(record: Mapping[str, Any], name: str) -> str:
    if not isinstance(record[name], str):
        raise LineError(f"{name}: a text is wanted")
    return str(record[name])
