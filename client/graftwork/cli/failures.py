"""From errors to the one line that says what is wrong and how to put it right."""

import re
from typing import IO, Any

import click

from graftwork.cli.session import Session
from graftwork.errors import (
    DeadlineExceeded,
    GraftworkError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)


class Failure(click.ClickException):
    """Ends the command with one line on stderr and exit code 1."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        print_error(self.format_message(), file)


def print_error(message: str, file: IO[Any] | None = None) -> None:
    # On a terminal a message from a server must not carry escape sequences.
    line = "".join(char if char.isprintable() else " " for char in message)
    click.echo(click.style("error: ", fg="red", bold=True) + line, file=file, err=True)


class Command(click.Command):
    """A command whose errors are one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except GraftworkError as error:
            raise Failure(explain(error, ctx)) from error
        except UnicodeDecodeError as error:
            raise Failure("the input is not UTF-8") from error
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            where = f": {error.filename}" if error.filename else ""
            raise Failure(f"{error.strerror or error}{where}") from error


class CommandGroup(click.Group):
    """A group of such commands."""

    command_class = Command


def explain(error: GraftworkError, ctx: click.Context) -> str:
    """The message with what the caller can do about it."""
    message = _name_option(error, ctx)
    session = ctx.find_object(Session)
    if isinstance(error, Unavailable) and not error.reason and session is not None:
        cause = _last_cause(message)
        return f"cannot reach {session.target}: {cause} ({_connection_hint(cause)})"
    if isinstance(error, DeadlineExceeded) and session is not None:
        return f"no answer within {session.timeout_s:g} s (--timeout gives it longer)"
    if isinstance(error, ResourceExhausted) and error.retry_after_s is not None:
        return f"{message} (try again in {error.retry_after_s:g} s)"
    if isinstance(error, NotFound) and error.field in (None, "adapter", "name"):
        return f"{message} (`graftwork adapters list` shows what there is)"
    return message


def _name_option(error: GraftworkError, ctx: click.Context) -> str:
    """Puts the command's own option in the place of the request's field."""
    if error.field is None:
        return error.message
    name = error.field.rsplit(".", 1)[-1]
    for parameter in ctx.command.params:
        if parameter.name == name:
            label = parameter.opts[0] if isinstance(parameter, click.Option) else name.upper()
            return f"{label}: {error.message.removeprefix(f'{error.field}: ')}"
    if error.message.startswith(error.field):
        return error.message
    return f"{error.field}: {error.message}"


def _last_cause(message: str) -> str:
    """gRPC wraps "Connection refused" in the history of its attempts."""
    last = message.rsplit("last error: ", 1)[-1]
    return re.sub(r"^[A-Z_]+: (ipv[46]|unix):\S+: ", "", last).removesuffix(": OK")


def _connection_hint(cause: str) -> str:
    if "handshake" in cause:  # failed, or its files are no certificates
        return "does the server use TLS, with a certificate that --ca or the system trusts?"
    if "Socket closed" in cause:
        return "does the server want TLS: --tls, --ca, or --cert and --key?"
    return "start a server with `graftwork serve`, or name another with --target"
