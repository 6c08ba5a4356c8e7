"""Commands that other packages add by the entry-point group `graftwork.commands`.

Listing them imports nothing; a command's package is imported when the command is called.
"""

from importlib.metadata import EntryPoint, entry_points

import click

from graftwork.cli.failures import Failure

GROUP = "graftwork.commands"

# So that `graftwork --help` can tell what they do without importing torch.
_SHORT_HELP = {
    "serve": "Run a server.",
    "doctor": "Tell what this machine can run, and what is missing.",
}


def names() -> list[str]:
    return sorted({entry.name for entry in _entries()})


def short_help(name: str) -> str:
    return _SHORT_HELP.get(name, "")


def load(name: str) -> click.Command | None:
    """None where no package adds such a command; Failure where its package cannot be imported."""
    entry = next((entry for entry in _entries() if entry.name == name), None)
    if entry is None:
        return None
    try:
        command = entry.load()
    except ModuleNotFoundError as error:
        raise Failure(
            f"`graftwork {name}` needs {error.name}, which is not installed:"
            " pip install 'graftwork[server]'"
        ) from error
    if not isinstance(command, click.Command):
        raise Failure(f"`graftwork {name}` is not a command: {entry.value}")
    return command


def _entries() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))
