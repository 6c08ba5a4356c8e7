"""From a snapshot's lines to token ids, exactly as the server makes them of a request."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork.status import InvalidFieldError
from graftwork_adapters.prompt_builder import (
    Conversation,
    Document,
    Message,
    PromptBuilder,
    PromptInput,
    Text,
    TokenIds,
)
from graftwork_adapters.prompt_file import VersionPrompt

from graftwork_trainer.base.model import TrainingBase

_PROBE = "answer"


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """A prompt and what follows it."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]  # with the token that ends it

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


class ExampleTokenizer:
    """Renders prompts with the base's chat template and ends completions as the base would."""

    def __init__(self, base: TrainingBase, around: VersionPrompt | None = None) -> None:
        """`around` is the prompt that the adapter carries, as it will be served."""
        self._prompts = PromptBuilder(base.tokenizer)
        self._around = around
        self._base = base
        self._end_of_turn = self._find_end_of_turn()

    def tokenize(
        self, prompt: PromptInput, completion: str, field: str, *, ends: bool = True
    ) -> TokenizedExample:
        """Without the token that ends it where `ends` is false. Raises InvalidFieldError naming
        `field` where one of them has no tokens."""
        prompt_ids = self._prompts.build(prompt, self._around).token_ids
        ids = self._prompts.completion(completion, f"{field}.completion")
        if not ends:
            return TokenizedExample(prompt_ids, ids)
        end = self._end_of_turn if isinstance(prompt, Conversation) else self._end_of_text()
        return TokenizedExample(prompt_ids, ids if end is None else (*ids, end))

    def _end_of_text(self) -> int | None:
        """What the tokenizer calls the end; else any token that ends the base's answers."""
        known = self._base.description.end_token_ids
        own: int | None = self._base.tokenizer.eos_token_id
        if own is not None and (own in known or not known):
            return own
        return known[0] if known else None

    def _find_end_of_turn(self) -> int | None:
        """The token that the template puts after an assistant's turn, where it ends answers."""
        tokenizer = self._base.tokenizer
        if not tokenizer.chat_template:
            return self._end_of_text()
        turns = [{"role": "user", "content": "-"}, {"role": "assistant", "content": _PROBE}]
        rendered = str(tokenizer.apply_chat_template(turns, tokenize=False))
        after = rendered[rendered.rindex(_PROBE) + len(_PROBE) :]
        for token in self._prompts.completion(after, "chat_template") if after else ():
            if token in self._base.description.end_token_ids:
                return token
        return self._end_of_text()


def read_lines(path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Name, for messages, and JSON object of each line of a snapshot's file."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            name = f"{path.name}[{number}]"
            try:
                value = json.loads(line)
            except ValueError as error:
                raise InvalidFieldError(name, f"is not valid JSON: {error}") from None
            if not isinstance(value, dict):
                raise InvalidFieldError(name, "must be a JSON object")
            yield name, value


def prompt_of(value: Mapping[str, Any], name: str) -> PromptInput:
    """The prompt of an example, as a request would give it; raises InvalidFieldError."""
    prompt: Any = value.get("prompt")
    try:
        match prompt:
            case {"messages": messages}:
                documents = prompt.get("documents", ())
                return Conversation(
                    tuple(Message(m["role"], m["content"]) for m in messages),
                    tuple(Document(d.get("title", ""), d["text"]) for d in documents),
                )
            case {"text": str(text)}:
                return Text(text)
            case {"token_ids": ids}:
                return TokenIds(tuple(int(token) for token in ids))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidFieldError(f"{name}.prompt", f"is damaged: {error!r}") from None
    raise InvalidFieldError(f"{name}.prompt", "needs one of messages, text and token_ids")


def text_of(value: Mapping[str, Any], key: str, name: str) -> str:
    """A text of an example; raises InvalidFieldError."""
    text = value.get(key)
    if not isinstance(text, str):
        raise InvalidFieldError(f"{name}.{key}", "must be a text")
    return text
