"""Who says which answer is better: a person at the terminal, or a judge."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import click
import grpc

from graftwork.cli import console
from graftwork.cli.comparisons import Comparison
from graftwork.cli.failures import Failure
from graftwork.client import Client
from graftwork.errors import GraftworkError, Unavailable
from graftwork.feedback_types import FeedbackOptions
from graftwork.judges import Judge, open_judge
from graftwork.types import Conversation, Message, Prompt

# A judge that fails with one of these may do better with other answers.
_OF_THESE_ANSWERS = {
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}


class Quit(Exception):
    """No more comparisons."""


@dataclass(frozen=True, slots=True)
class Verdict:
    items: list[FeedbackOptions]  # none where it was passed over
    outcome: str  # what it counts as


class Decider(ABC):
    @abstractmethod
    def decide(self, comparison: Comparison) -> Verdict:
        """Of two answers or more."""

    def close(self) -> None:  # noqa: B027 - most own nothing
        """Closes what it has opened."""


class Person(Decider):
    """Whoever types lines into `lines`."""

    def __init__(self, lines: IO[str]) -> None:
        self._lines = lines

    def decide(self, comparison: Comparison) -> Verdict:
        """Raises Quit at q and at the end of input."""
        number = len(comparison.candidates)
        click.echo(console.printable(_shown(comparison.prompt)), err=True)
        console.show_beside(comparison.texts)
        keys = ", ".join(map(str, range(1, number + 1)))
        while True:
            click.echo(f"Better [{keys}, t tie, s skip, q quit]: ", nl=False, err=True)
            line = self._lines.readline()
            key, _, comment = line.strip().partition(" ")
            if not line or key == "q":
                raise Quit
            if key == "s":
                return Verdict([], "skipped")
            if key == "t":
                return _commented(comparison.tie(), comment)
            if key.isdecimal() and 1 <= int(key) <= number:
                return _commented(comparison.best(int(key) - 1), comment)
            console.note(f"{key!r} is none of {keys}, t, s and q")


def _commented(items: list[FeedbackOptions], comment: str) -> Verdict:
    return Verdict([{**item, "comment": comment.strip()} for item in items], "compared")


class Judged(Decider):
    """A judge, which is asked for rewards."""

    def __init__(self, judge: Judge, uri: str) -> None:
        self._judge = judge
        self._uri = uri

    def decide(self, comparison: Comparison) -> Verdict:
        """What the judge has no opinion on is left out. Raises Failure where it cannot be asked."""
        try:
            scores = self._judge.score(comparison.prompt, comparison.texts)
        except Unavailable as error:
            raise Failure(f"the judge {self._uri} cannot be reached: {error.message}") from error
        except GraftworkError as error:
            if error.code not in _OF_THESE_ANSWERS:
                raise Failure(f"the judge {self._uri}: {error.message}") from error
            console.note(f"the judge {self._uri} gave no reward: {error.message}")
            return Verdict([], "not judged")
        silent = {place for place, score in enumerate(scores) if score is None}
        if len(scores) - len(silent) < 2:
            return Verdict([], "not judged")
        known = [score for score in scores if score is not None]
        return Verdict(comparison.without(silent).scored(known), "compared")

    def close(self) -> None:
        self._judge.close()


def open_decider(uri: str | None, client: Client, *, is_stdin_taken: bool) -> Decider:
    """Where the prompt came from stdin, a person answers on the terminal itself."""
    if uri is not None:
        return Judged(open_judge(uri, client), uri)
    if not is_stdin_taken:
        if sys.stdin is None:  # as Python finds it where the shell has closed it
            raise click.UsageError("stdin is closed: open it to answer on, or name a --judge")
        return Person(sys.stdin)
    try:
        return Person(Path("/dev/tty").open())  # until the command ends
    except OSError as error:
        raise click.UsageError(
            "the prompt came from stdin, and there is no terminal to answer on: give it as an "
            "argument, or name a --judge"
        ) from error


def _shown(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    turns = prompt.messages if isinstance(prompt, Conversation) else prompt
    return "\n".join(map(_turn, turns))


def _turn(turn: Message | Mapping[str, str] | int) -> str:
    if isinstance(turn, int):
        return f"token {turn}"
    message = Message(**turn) if isinstance(turn, Mapping) else turn
    return f"{message.role}: {message.content}"
