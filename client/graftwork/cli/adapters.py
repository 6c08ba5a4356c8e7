"""`graftwork adapters ...`."""

from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from graftwork.cli import console
from graftwork.cli.options import PairType, json_option
from graftwork.cli.plugins import ADAPTERS_GROUP, PluginGroup
from graftwork.cli.session import Session, pass_session
from graftwork.types import Adapter, AdapterVersion

F = TypeVar("F", bound=Callable[..., Any])

live_option = click.option(
    "--live/--no-live",
    "make_live",
    default=None,
    help="Make the version live. Default: only where the adapter has no live version.",
)
task_option = click.option(
    "--task", "task_id", type=click.IntRange(min=0), help="The task of a file that holds several."
)
name_argument = click.argument("name")
selector_argument = click.argument("selector", metavar="NAME[@VERSION]")


class AdaptersGroup(PluginGroup):
    """With the commands that the adapters' package adds."""

    entry_points = ADAPTERS_GROUP


@click.group(cls=AdaptersGroup)
def adapters() -> None:
    """Register, inspect, promote and remove adapters."""


@adapters.command("list")
@json_option
@pass_session
def list_adapters(session: Session, as_json: bool) -> None:
    """List the adapters and what each name points at."""
    with console.spinner("asking"):
        found = list(session.client.adapters.list())
    if as_json:
        console.print_json(found)
        return
    console.print_table(
        ["name", "live", "split", "pinned", "updated"],
        [
            (
                adapter.name,
                _live(adapter),
                _split(adapter),
                "yes" if adapter.pinned else "",
                _time(adapter.update_time),
            )
            for adapter in found
        ],
    )


@adapters.command()
@name_argument
@json_option
@pass_session
def get(session: Session, name: str, as_json: bool) -> None:
    """Show one adapter."""
    with console.spinner("asking"):
        adapter = session.client.adapters.get(name)
    _show_adapter(adapter, as_json)


@adapters.command()
@click.argument("name", default="")
@json_option
@pass_session
def versions(session: Session, name: str, as_json: bool) -> None:
    """List the versions of one adapter, or of all."""
    with console.spinner("asking"):
        found = list(session.client.adapters.versions(name))
    if as_json:
        console.print_json(found)
        return
    console.print_table(
        ["version", "method", "#rank", "#parameters", "#size", "residency", "digest", "created"],
        [
            (
                version.selector,
                version.method,
                version.rank,
                f"{version.num_parameters:,}",
                console.size(version.size_bytes),
                version.residency.value,
                console.short_digest(version.digest),
                _time(version.create_time),
            )
            for version in found
        ],
    )


@adapters.command()
@name_argument
@click.argument("source")
@live_option
@task_option
@json_option
@pass_session
def create(
    session: Session,
    name: str,
    source: str,
    *,
    make_live: bool | None,
    task_id: int | None,
    as_json: bool,
) -> None:
    """Register a version from a folder of the server.

    SOURCE is a path or URI that the server may read.
    """
    with console.spinner("registering"):
        version = session.client.adapters.create(name, source, make_live=make_live, task_id=task_id)
    _show_version(version, as_json)


@adapters.command()
@name_argument
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@live_option
@task_option
@json_option
@pass_session
def upload(
    session: Session,
    name: str,
    folder: Path,
    *,
    make_live: bool | None,
    task_id: int | None,
    as_json: bool,
) -> None:
    """Register a version from a folder of this machine.

    FOLDER is what PEFT saves: adapter_config.json and adapter_model.safetensors.
    """
    with console.progress_bar(f"uploading {name}") as progress:
        version = session.client.adapters.upload(
            name, folder, make_live=make_live, task_id=task_id, progress=progress
        )
    _show_version(version, as_json)


@adapters.command()
@selector_argument
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
@pass_session
def download(session: Session, selector: str, folder: Path, as_json: bool) -> None:
    """Write a version's PEFT folder to this machine.

    FOLDER must be new or empty.
    """
    with console.progress_bar(f"downloading {selector}") as progress:
        version = session.client.adapters.download(selector, folder, progress=progress)
    if as_json:
        console.print_json(version)
    else:
        click.echo(f"{version.selector} -> {folder}")


@adapters.command()
@click.argument("selector", metavar="NAME@VERSION")
@pass_session
def delete(session: Session, selector: str) -> None:
    """Delete a version that is neither live nor in a traffic split."""
    with console.spinner("deleting"):
        session.client.adapters.delete(selector)
    click.echo(f"{selector} deleted")


@adapters.command()
@click.argument("selector", metavar="NAME@VERSION")
@json_option
@pass_session
def promote(session: Session, selector: str, as_json: bool) -> None:
    """Make a version live for all traffic; ends a split."""
    name, _, number = selector.partition("@")
    if not number.isdecimal():
        raise click.UsageError(f"NAME@VERSION is wanted, such as poet@3, not {selector!r}")
    with console.spinner("promoting"):
        adapter = session.client.adapters.update(name, live_version=int(number), traffic_split={})
    _show_adapter(adapter, as_json)


@adapters.command()
@name_argument
@click.argument("shares", nargs=-1, type=PairType("VERSION=PERCENT", int))
@click.option("--end", is_flag=True, help="End the split: all traffic to the live version.")
@json_option
@pass_session
def split(
    session: Session, name: str, shares: tuple[tuple[int, int], ...], end: bool, as_json: bool
) -> None:
    """Share an adapter's traffic between versions.

    SHARES are percents by version and add up to 100: `split poet 1=90 2=10`.
    """
    if bool(shares) == end:
        raise click.UsageError("either shares, such as 1=90 2=10, or --end")
    with console.spinner("splitting"):
        adapter = session.client.adapters.update(name, traffic_split=dict(shares))
    _show_adapter(adapter, as_json)


@adapters.command()
@name_argument
@json_option
@pass_session
def pin(session: Session, name: str, as_json: bool) -> None:
    """Keep the live versions of NAME on the device."""
    with console.spinner("pinning"):
        adapter = session.client.adapters.update(name, pinned=True)
    _show_adapter(adapter, as_json)


@adapters.command()
@name_argument
@json_option
@pass_session
def unpin(session: Session, name: str, as_json: bool) -> None:
    """Let NAME be evicted from the device again."""
    with console.spinner("unpinning"):
        adapter = session.client.adapters.update(name, pinned=False)
    _show_adapter(adapter, as_json)


@adapters.command()
@name_argument
@json_option
@pass_session
def rollback(session: Session, name: str, as_json: bool) -> None:
    """Make the version that was live before live again."""
    with console.spinner("rolling back"):
        adapter = session.client.adapters.rollback(name)
    _show_adapter(adapter, as_json)


@adapters.command()
@selector_argument
@json_option
@pass_session
def load(session: Session, selector: str, as_json: bool) -> None:
    """Bring a version onto the device."""
    with console.spinner("loading"):
        version = session.client.adapters.load(selector)
    _show_version(version, as_json)


@adapters.command()
@selector_argument
@json_option
@pass_session
def unload(session: Session, selector: str, as_json: bool) -> None:
    """Take a version off the device once no request uses it."""
    with console.spinner("unloading"):
        version = session.client.adapters.unload(selector)
    _show_version(version, as_json)


def _show_adapter(adapter: Adapter, as_json: bool) -> None:
    if as_json:
        console.print_json(adapter)
        return
    console.print_fields(
        _present(
            ("name", adapter.name),
            ("live", _live(adapter)),
            ("split", _split(adapter)),
            ("pinned", "yes" if adapter.pinned else "no"),
            ("created", _time(adapter.create_time)),
            ("updated", _time(adapter.update_time)),
        )
    )


def _show_version(version: AdapterVersion, as_json: bool) -> None:
    if as_json:
        console.print_json(version)
        return
    verified = "by the files" if version.base_verified else "by names and shapes only"
    console.print_fields(
        _present(
            ("version", version.selector),
            ("method", version.method),
            ("rank", version.rank or ""),
            ("virtual tokens", version.num_virtual_tokens or ""),
            ("parameters", f"{version.num_parameters:,}"),
            ("size", console.size(version.size_bytes)),
            ("residency", version.residency.value),
            ("digest", version.digest),
            ("base", f"{version.base_digest}, verified {verified}"),
            ("source", version.source),
            ("created", _time(version.create_time)),
        )
    )


def _present(*fields: tuple[str, object]) -> Iterable[tuple[str, object]]:
    return [field for field in fields if field[1] != ""]


def _live(adapter: Adapter) -> str:
    return str(adapter.live_version) if adapter.live_version else "none"


def _split(adapter: Adapter) -> str:
    return " ".join(f"{version}={share}%" for version, share in adapter.traffic_split.items())


def _time(time: datetime) -> str:
    return time.astimezone().strftime("%Y-%m-%d %H:%M")
