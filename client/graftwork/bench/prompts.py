"""What is asked."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from graftwork.bench.lengths import Lengths
from graftwork.types import Message, Prompt

# The server's tokenizer turns it into the tokens that synthetic prompts are drawn from.
SAMPLE_TEXT = (
    "The old lighthouse keeper counted seven ships before breakfast, and wrote each name in a blue "
    "book: where it came from, what it carried, how deep it sat in the water. On quiet days he "
    "mended nets, read yesterday's paper, or taught his daughter to tell rain from fog by smell. "
    "People in the village said that nobody knew more about weather, bread, engines and patience."
)


class Prompts(Protocol):
    def draw(self, chance: random.Random) -> Prompt: ...


@dataclass(frozen=True, slots=True)
class SyntheticPrompts:
    """Token ids in random order, so that no two prompts share a prefix worth caching."""

    lengths: Lengths
    vocabulary: Sequence[int]

    def draw(self, chance: random.Random) -> Prompt:
        return chance.choices(self.vocabulary, k=self.lengths.draw(chance))


@dataclass(frozen=True, slots=True)
class GivenPrompts:
    """Drawn with replacement."""

    prompts: Sequence[Prompt]

    def draw(self, chance: random.Random) -> Prompt:
        return chance.choice(self.prompts)


def read_prompts(path: Path, *, chat: bool = False) -> list[Prompt]:
    """One prompt a line. In a .jsonl file a line is a JSON string, or an object with "prompt" (a
    text) or "messages"; in any other file it is the text itself. Empty lines are skipped.

    `chat` makes a text the message of a user. Raises ValueError that names the line.
    """
    is_json = path.suffix == ".jsonl"
    prompts: list[Prompt] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            prompt = _parse_prompt(line) if is_json else line
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        prompts.append([Message("user", prompt)] if chat and isinstance(prompt, str) else prompt)
    if not prompts:
        raise ValueError(f"{path}: holds no prompt")
    return prompts


def _parse_prompt(line: str) -> str | list[Message]:
    try:
        record: Any = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if isinstance(record, dict):
        record = record.get("messages", record.get("prompt"))
    if isinstance(record, str) and record:
        return record
    if isinstance(record, list) and record:
        return [_parse_message(item) for item in record]
    raise ValueError('a text, {"prompt": "..."} or {"messages": [...]} is wanted')


def _parse_message(item: Any) -> Message:
    match item:
        case {"role": str(role), "content": str(content)}:
            return Message(role, content)
    raise ValueError('messages: each must be {"role": "...", "content": "..."}')
