"""Commands that other packages add by entry points: of the group `graftwork.commands` to the root,
of `graftwork.adapters.commands` to `graftwork adapters`.

Listing them imports nothing; a command's package is imported when the command is called.
"""

from importlib.metadata import EntryPoint, entry_points

import click

from graftwork.cli.failures import CommandGroup, Failure

GROUP = "graftwork.commands"
ADAPTERS_GROUP = "graftwork.adapters.commands"

# So that `graftwork --help` can tell what they do without importing torch.
_SHORT_HELP = {
    "serve": "Run a server.",
    "doctor": "Tell what this machine can run, and what is missing.",
    "backup": "Write registry, adapters, journal and training data to a file.",
    "restore": "Put a backup into an empty data folder.",
    "convert": "Convert a folder of AdapterHub's, offline.",
}


def names(group: str = GROUP) -> list[str]:
    return sorted({entry.name for entry in _entries(group)})


def short_help(name: str) -> str:
    return _SHORT_HELP.get(name, "")


def load(name: str, group: str = GROUP) -> click.Command | None:
    """None where no package adds such a command; Failure where its package cannot be imported."""
    entry = next((entry for entry in _entries(group) if entry.name == name), None)
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


class PluginGroup(CommandGroup):
    """Our own commands in the order they were added, then those of other packages."""

    entry_points = GROUP

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        added = names(self.entry_points)
        return [*self.commands, *(name for name in added if name not in self.commands)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or load(cmd_name, self.entry_points)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            command = self.commands.get(name)
            text = short_help(name) if command is None else command.get_short_help_str(70)
            rows.append((name, text))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _entries(group: str) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))
