"""`graftwork chat`: a conversation in which the adapter may change from turn to turn."""

import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from graftwork.cli import console
from graftwork.cli.failures import Command, explain, print_error
from graftwork.cli.generation import describe, print_ids, print_stream
from graftwork.cli.options import (
    SETTINGS,
    adapter_options,
    ids_option,
    settings_options,
    stop_option,
    store_option,
    task_option,
    to_adapters,
)
from graftwork.cli.session import Session, pass_session
from graftwork.client import Client
from graftwork.errors import GraftworkError
from graftwork.types import Message

HELP = """\
/adapter NAME[@VERSION]  answer with this adapter from now on; /adapter alone: with the base;
                         NAME:WEIGHT NAME:WEIGHT ...: with several
/system TEXT             set the system message; /system alone: none
/params [KEY=VALUE ...]  show or set parameters; KEY= takes the default again
/reset                   forget the conversation
/help                    this list
/quit                    leave; so does Ctrl-D
Ctrl-C stops an answer, and what came of it stays in the conversation."""


@click.command(cls=Command)
@adapter_options
@click.option("--system", metavar="TEXT", help="A system message.")
@settings_options
@stop_option
@task_option
@store_option
@ids_option
@pass_session
def chat(
    session: Session,
    /,
    *,
    adapters: tuple[str, ...],
    adapter_scale: float | None,
    system: str | None,
    stop: tuple[str, ...],
    task: str | None,
    store: bool | None,
    show_ids: bool,
    **settings: Any,
) -> None:
    """Talk with the base or an adapter.

    Each line is a turn; /help lists the commands that change the adapter and more.

    With stdin from a pipe, each of its lines is a turn, and only answers go to stdout.
    """
    fixed = {"stop": stop, "store": store, "task": task}
    talk = Chat(
        session.client,
        adapters=adapters,
        adapter_scale=adapter_scale,
        system=system,
        settings=settings,
        fixed=fixed,
        show_ids=show_ids,
    )
    if sys.stdin.isatty():
        console.note("/help lists the commands, Ctrl-D leaves")
        talk.run(_typed_lines(talk))
    else:
        talk.run(line.rstrip("\r\n") for line in sys.stdin)
        if talk.failed:
            raise click.exceptions.Exit(1)


def _typed_lines(talk: "Chat") -> Iterator[str]:
    """Lines typed at a prompt that names who answers, until end of file."""
    import readline  # noqa: F401, PLC0415  gives input() its editing and history

    while True:
        # Readline counts what stands between \001 and \002 as taking no room.
        name = console.printable(talk.adapter or "base")
        prompt = f"\001\x1b[1;36m\002{name}>\001\x1b[0m\002 "
        try:
            yield input(prompt)
        except KeyboardInterrupt:
            click.echo(err=True)
            console.note("/quit or Ctrl-D leaves")
        except EOFError:
            click.echo(err=True)
            return


class Chat:
    """The state of a conversation: its turns, who answers next, and how."""

    def __init__(
        self,
        client: Client,
        *,
        adapters: Sequence[str],
        adapter_scale: float | None,
        system: str | None,
        settings: dict[str, Any],
        fixed: dict[str, Any],
        show_ids: bool,
    ) -> None:
        self.adapter = " ".join(adapters)  # as it is shown
        self.failed = False
        self._client = client
        self._adapters = to_adapters(adapters)
        self._adapter_scale = adapter_scale  # of whatever answers but the base
        self._system = system
        self._settings = {name: value for name, value in settings.items() if value is not None}
        self._fixed = fixed
        self._show_ids = show_ids
        self._turns: list[Message] = []
        self._episode_id = str(uuid.uuid4())  # also keeps a traffic split on one version
        self._commands: dict[str, Callable[[str], None]] = {
            "/adapter": self._switch,
            "/system": self._set_system,
            "/params": self._params,
            "/reset": self._reset,
            "/help": lambda _: click.echo(HELP, err=True),
        }

    def run(self, lines: Iterator[str]) -> None:
        """Takes turns until the lines end or one of them is /quit."""
        for line in lines:
            word, _, rest = line.strip().partition(" ")
            if word == "/quit":
                return
            if not word:
                continue
            try:
                if word.startswith("/"):
                    self._command(word, rest.strip())
                else:
                    self._answer(line)
            except GraftworkError as error:
                self._fail(explain(error, click.get_current_context()))

    def _command(self, word: str, rest: str) -> None:
        command = self._commands.get(word)
        if command is None:
            self._fail(f"{word} is not a command; /help lists them")
        else:
            command(rest)

    def _answer(self, line: str) -> None:
        """Streams an answer to stdout; a failed turn is forgotten, a stopped one kept."""
        system = [Message("system", self._system)] if self._system else []
        asked = [*self._turns, Message("user", line)]
        options = self._settings | self._fixed | self._adapters
        if self._adapters:
            options["adapter_scale"] = self._adapter_scale
        said: list[str] = []
        stopped = False
        with self._client.stream(
            [*system, *asked], episode_id=self._episode_id, **options
        ) as stream:
            try:
                print_stream(stream, said)
            except KeyboardInterrupt:
                stopped = True
        if stopped:
            console.note("stopped" if said else "\nstopped")  # not on the line of the ^C
        elif console.interactive():
            console.note(describe(stream.result))
        if said and self._show_ids:
            print_ids(stream.result)
        if said:
            self._turns = [*asked, Message("assistant", "".join(said))]

    def _switch(self, text: str) -> None:
        """Asks the server first, so that a mistyped name leaves the conversation as it is."""
        try:
            adapters = to_adapters(text.split())
        except click.BadParameter as error:
            self._fail(error.message)
            return
        for selector in adapters.get("adapters", [adapters.get("adapter", "")]):
            if "@" in selector:
                self._client.adapters.get_version(selector)
            elif selector:
                self._client.adapters.get(selector)
        self.adapter, self._adapters = text, adapters
        console.note(f"{text or 'the base'} answers from now on")

    def _set_system(self, text: str) -> None:
        self._system = text or None
        console.note("system message set" if text else "no system message")

    def _reset(self, _: str) -> None:
        self._turns = []
        self._episode_id = str(uuid.uuid4())
        console.note("conversation forgotten")

    def _params(self, text: str) -> None:
        types = {setting.name: setting.type for setting in SETTINGS}
        for pair in text.split():
            key, _, value = pair.partition("=")
            key = key.replace("-", "_")
            if key not in types or "=" not in pair:
                self._fail(f"{pair}: KEY=VALUE is wanted, KEY one of {', '.join(types)}")
                return
            if not value:
                self._settings.pop(key, None)
                continue
            try:
                self._settings[key] = types[key].convert(value, None, None)
            except click.BadParameter as error:
                self._fail(f"{key}: {error.message}")
                return
        shown = [f"{key}={value}" for key, value in self._settings.items()]
        console.note(" ".join(shown) or "all parameters at the server's defaults")

    def _fail(self, message: str) -> None:
        self.failed = True
        print_error(message)
