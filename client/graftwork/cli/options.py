"""Options that commands share, and how prompts are read."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from graftwork.feedback_types import Source
from graftwork.types import Message, Origin, Prompt

F = TypeVar("F", bound=Callable[..., Any])

SOURCES = [source.value for source in Source if source is not Source.UNKNOWN]
ORIGINS = [origin.value for origin in Origin if origin is not Origin.UNKNOWN]


@dataclass(frozen=True, slots=True)
class Setting:
    """A number of the request: an option of `generate` and `chat`, and a parameter of /params."""

    name: str
    type: "click.ParamType[Any]"
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


SETTINGS = (
    Setting("max_tokens", click.INT, "Most tokens to generate."),
    Setting("min_tokens", click.INT, "Fewest tokens before a stop token may end the answer."),
    Setting("temperature", click.FLOAT, "0 is greedy, the default; that of compare is 1."),
    Setting("top_p", click.FLOAT, "Smallest set of tokens whose probability reaches this."),
    Setting("top_k", click.INT, "Only this many likeliest tokens; 0 is all."),
    Setting("min_p", click.FLOAT, "Only tokens at least this times as likely as the likeliest."),
    Setting("repetition_penalty", click.FLOAT, "Scales logits of tokens in prompt or output."),
    Setting("presence_penalty", click.FLOAT, "Subtracted once for tokens in the output."),
    Setting("frequency_penalty", click.FLOAT, "Subtracted for each time a token is in the output."),
    Setting("seed", click.INT, "Same seed and request, same tokens."),
    Setting("priority", click.INT, "Higher goes first; below 0 is the background."),
    Setting(
        "prompt_lookup_tokens",
        click.INT,
        "Guess up to this many tokens at once from the prompt: the same answer, faster where it "
        "repeats the prompt.",
    ),
)


def settings_options(function: F) -> F:
    for setting in reversed(SETTINGS):
        function = click.option(setting.flag, setting.name, type=setting.type, help=setting.help)(
            function
        )
    return function


stop_option = click.option(
    "--stop", multiple=True, metavar="TEXT", help="End before this text. Repeatable."
)
store_option = click.option(
    "--store/--no-store", default=None, help="Whether the server may keep it in its journal."
)
task_option = click.option(
    "--task", metavar="NAME", help="What it is for; feedback on it trains one adapter."
)
ids_option = click.option(
    "--show-ids", is_flag=True, help="Print each generation's id, for feedback, to stderr."
)
author_option = click.option("--author", default="", metavar="ID", help="Who gives it.")
source_option = click.option(
    "--source", type=click.Choice(SOURCES), default="human", show_default=True
)


def time_options(function: F) -> F:
    function = click.option("--before", type=click.DateTime(), help="Before this local time.")(
        function
    )
    return click.option("--after", type=click.DateTime(), help="From this local time on.")(function)


def aware(time: datetime | None) -> Any:
    """A local time with its zone."""
    return None if time is None else time.astimezone()


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def adapter_options(function: F) -> F:
    """Who answers; pass the values of --adapter to `to_adapters`."""
    function = click.option(
        "--adapter-scale", type=click.FLOAT, help="Multiplies what the adapters change."
    )(function)
    return click.option(
        "-a",
        "--adapter",
        "adapters",
        multiple=True,
        metavar="NAME[@VERSION][:WEIGHT]",
        help="Answers; default: the base. Repeat it to combine several.",
    )(function)


def to_adapters(words: Sequence[str]) -> dict[str, Any]:
    """The request's options for NAME[@VERSION][:WEIGHT], any number of them.

    Raises click.BadParameter.
    """
    if len(words) == 1 and ":" not in words[0]:
        return {"adapter": words[0]}
    adapters: dict[str, float] = {}
    for word in words:
        selector, separator, weight = word.partition(":")
        if selector in adapters:
            raise click.BadParameter(f"{selector} is given twice")
        try:
            adapters[selector] = float(weight) if separator else 1.0
        except ValueError:
            raise click.BadParameter(f"{word!r}: the weight is not a number") from None
    return {"adapters": adapters} if adapters else {}


def chat_options(function: F) -> F:
    """How a text becomes a prompt; pass them to `to_prompt`."""
    function = click.option("--system", metavar="TEXT", help="A system message; implies --chat.")(
        function
    )
    return click.option(
        "--chat", is_flag=True, help="Put the text through the base's chat template, as a user."
    )(function)


def to_prompt(text: str, *, chat: bool, system: str | None) -> Prompt:
    """`text` "-" is read from stdin, without its last line end."""
    if text == "-":
        text = sys.stdin.buffer.read().decode().removesuffix("\n")
    if system is not None:
        return [Message("system", system), Message("user", text)]
    return [Message("user", text)] if chat else text


class JsonSchemaType(click.ParamType):  # type: ignore[type-arg]
    """JSON text, or "@" and the path of a file with it."""

    name = "schema"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if text.startswith("@"):
            try:
                text = Path(text[1:]).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                self.fail(f"cannot read {text[1:]}: {error}", param, ctx)
        try:
            json.loads(text)
        except ValueError as error:
            self.fail(f"not JSON: {error}", param, ctx)
        return text


class PairType(click.ParamType):  # type: ignore[type-arg]
    """KEY=VALUE with a whole number as the key and a number as the value."""

    def __init__(self, name: str, value_type: Callable[[str], float]) -> None:
        self.name = name
        self._value_type = value_type

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, float]:
        key, _, number = str(value).partition("=")
        try:
            return int(key), self._value_type(number)
        except ValueError:
            self.fail(f"{value!r} is not {self.name}", param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        return self.name
