"""What the commands write: results to stdout, everything else to stderr.

Text from a server is never trusted with the terminal: control characters are shown, not obeyed.
"""

import dataclasses
import enum
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import click
from rich.console import Console, Group
from rich.panel import Panel
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from graftwork.folders import Progress as ProgressCallback

# C0 and C1 control characters but line feed and tab: escape sequences begin with them.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PIPE_WIDTH = 200  # columns of a table that goes to a pipe or a file
_LEAST_WIDTH = 30  # columns of a text that stands beside another


def printable(text: str) -> str:
    """The text with control characters replaced by U+FFFD."""
    return _CONTROL.sub("\ufffd", text)


def write(text: str) -> None:
    """Writes a part of an answer at once; a terminal gets it without control characters."""
    click.echo(printable(text) if sys.stdout.isatty() else text, nl=False)


def note(text: str) -> None:
    """A remark beside the result, on stderr."""
    click.secho(printable(text), dim=True, err=True)


def interactive() -> bool:
    """Whether someone watches stderr."""
    return sys.stderr.isatty()


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """Shows on a terminal that something goes on."""
    if not interactive():
        yield
        return
    with Console(stderr=True).status(text):
        yield


@contextmanager
def progress_bar(text: str) -> Iterator[ProgressCallback]:
    """Shows on a terminal how many bytes of all are done; gives the callback to report them."""
    columns = (TextColumn(text), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not interactive()
    ) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def counter(text: str) -> Iterator[Callable[[int], None]]:
    """Shows on a terminal how many are done where nobody knows of how many."""
    if not interactive():
        yield lambda _: None
        return
    with Console(stderr=True).status(text) as status:
        yield lambda number: status.update(f"{text}: {number:,}")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns whose name begins with "#" hold numbers and stand to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(
            column.removeprefix("#"),
            justify="right" if column.startswith("#") else "left",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    _stdout().print(table)


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Names and values, one pair a line."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, value in fields:
        grid.add_row(Text(name, style="bold"), Text(printable(str(value))))
    _stdout().print(grid)


def show_beside(texts: Sequence[str]) -> None:
    """Numbered texts side by side on stderr, or one below the other where that is too narrow."""
    console = Console(stderr=True, width=None if interactive() else _PIPE_WIDTH, highlight=False)
    panels = [
        Panel(Text(printable(text)), title=str(number), title_align="left")
        for number, text in enumerate(texts, start=1)
    ]
    if console.width < _LEAST_WIDTH * len(texts):
        console.print(Group(*panels))
        return
    grid = Table.grid(expand=True)
    for _ in panels:
        grid.add_column(ratio=1, overflow="fold")
    grid.add_row(*panels)
    console.print(grid)


def _stdout() -> Console:
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def print_json(value: Any) -> None:
    """A result of the client, or a list of them, as JSON."""
    click.echo(json.dumps(_plain(value), indent=2, ensure_ascii=False, default=_plain_leaf))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return dataclasses.asdict(value)


def _plain_leaf(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def size(num_bytes: int) -> str:
    """Bytes for people: 512 B, 19.5 MB."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    amount = float(num_bytes)
    for unit in ("kB", "MB", "GB"):
        amount /= 1000
        if amount < 1000:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1000:.1f} TB"


def short_digest(digest: str) -> str:
    """The first 12 digits of "sha256:..."."""
    return digest.removeprefix("sha256:")[:12]
