"""Backup while serving, and what a restored server knows."""

import io
import json
import os
import sqlite3
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from graftwork_server import postgresql_dump
from graftwork_server.backup import back_up, restore
from graftwork_server.backup_command import backup as backup_command
from graftwork_server.backup_command import restore as restore_command
from graftwork_server.errors import BackupError

from tests.support.postgresql import postgres_server
from tests.support.server import serving, tiny_settings
from tests.support.tiny_serving import TinyBase, ask, one_torch_thread, tiny_base, tokens_of

__all__ = ["one_torch_thread", "tiny_base"]


def nothing(done: int, total: int) -> None:
    """For progress that nobody watches."""


def settings_of(tiny_base: TinyBase, folder: Path, **journal: object):
    roots = {"roots": [str(tiny_base.folder)]}
    return tiny_settings(folder, tiny_base.model, adapters=roots, journal=journal)


async def filled(settings, tiny_base: TinyBase, backup: Path) -> tuple[list[int], str]:
    """Serves, gives feedback, and makes a backup meanwhile; the answer and the feedback's id."""
    async with serving(settings) as running:
        await running.client.adapters.create("poet", tiny_base.adapter(1))
        answer = await ask(running, "poet")
        generation_id = answer.choices[0].generation_id
        feedback = await running.client.feedback.submit(generation_id=generation_id, thumbs=True)
        report = settings.data_dir / "training" / "jobs" / "j1" / "report" / "report.md"
        for path in (report, report.parents[1] / "work" / "checkpoint"):
            path.parent.mkdir(parents=True)
            path.write_text("text")
        back_up(settings, backup, nothing)
        # What comes later is not in it.
        await running.client.feedback.submit(generation_id=generation_id, remark="late")
    return tokens_of(answer), feedback.id


async def check_restored(settings, expected: tuple[list[int], str]) -> None:
    async with serving(settings) as running:
        assert tokens_of(await ask(running, "poet")) == expected[0]
        listed = [feedback.id async for feedback in running.client.feedback.list()]
        assert listed == [expected[1]]
    jobs = settings.data_dir / "training" / "jobs" / "j1"
    assert [path.name for path in jobs.iterdir()] == ["report"]


async def test_backup_and_restore(tiny_base: TinyBase, tmp_path: Path) -> None:
    backup = tmp_path / "backup.tar"
    expected = await filled(settings_of(tiny_base, tmp_path / "one"), tiny_base, backup)
    assert backup.stat().st_mode & 0o077 == 0
    assert set(os.listdir(tmp_path)) == {"one", "backup.tar"}  # noqa: PTH208
    other = settings_of(tiny_base, tmp_path / "two")
    restore(other, backup, nothing)
    await check_restored(other, expected)
    with pytest.raises(BackupError, match="is there already"):
        restore(other, backup, nothing)
    with pytest.raises(BackupError, match="exists already"):
        back_up(other, backup, nothing)


async def test_a_postgresql_journal_is_dumped(tiny_base: TinyBase, tmp_path: Path) -> None:
    backup = tmp_path / "backup.tar"
    with postgres_server() as server:
        settings = settings_of(tiny_base, tmp_path / "one", url=server.url)
        expected = await filled(settings, tiny_base, backup)
        other = settings_of(tiny_base, tmp_path / "two", url=server.url)
        with pytest.raises(BackupError, match=r"(?s)pg_restore failed: .*already exists"):
            restore(other, backup, nothing)
        with pytest.raises(BackupError, match="holds a PostgreSQL journal"):
            restore(settings_of(tiny_base, tmp_path / "three"), backup, nothing)
        server.emptied()
        restore(other, backup, nothing)
        await check_restored(other, expected)


def test_without_its_programs_postgresql_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_dump, "_find", lambda _: None)
    with pytest.raises(BackupError, match="takes pg_dump, and that is not there"):
        postgresql_dump.dump("postgresql+psycopg://u:p@h/d", tmp_path / "dump")


async def test_a_running_server_is_not_overwritten(tiny_base: TinyBase, tmp_path: Path) -> None:
    backup = tmp_path / "backup.tar"
    settings = settings_of(tiny_base, tmp_path / "one")
    async with serving(settings):
        back_up(settings, backup, nothing)
        with pytest.raises(BackupError, match="a server uses"):
            restore(settings, backup, nothing)


async def test_damaged_backups_are_refused(tiny_base: TinyBase, tmp_path: Path) -> None:
    backup = tmp_path / "backup.tar"
    await filled(settings_of(tiny_base, tmp_path / "one"), tiny_base, backup)
    data = backup.read_bytes()
    middle = data.index(b"adapter_model.safetensors") + 2000
    damaged = bytearray(data)
    damaged[middle] ^= 1
    cases = {
        "do not match it": bytes(damaged),
        "is not a whole backup": data[: len(data) // 2],
        "is not a backup of Graftwork's": _tar({"manifest.json": b"[]"}),
        "a newer Graftwork": _tar({"manifest.json": json.dumps({"format": 9}).encode()}),
        "outside the destination": _tar({"../escape": b"x"}),
    }
    settings = settings_of(tiny_base, tmp_path / "two")
    for why, content in cases.items():
        backup.write_bytes(content)
        with pytest.raises((BackupError, tarfile.FilterError), match=why):
            restore(settings, backup, nothing)
        left = {p.name for p in settings.data_dir.rglob("*") if p.is_file()}
        assert left == {"lock"}


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def test_the_commands(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with sqlite3.connect(data / "registry.sqlite3") as connection:
        connection.execute("CREATE TABLE versions (digest TEXT)")
    file = tmp_path / "backup.tar"
    run = CliRunner().invoke
    made = run(backup_command, [str(file), "--data-dir", str(data)])
    assert made.exit_code == 0, made.output
    assert f"{data} -> {file}" in made.output
    back = run(restore_command, [str(file), "--data-dir", str(tmp_path / "new")])
    assert back.exit_code == 0, back.output
    assert (tmp_path / "new" / "registry.sqlite3").exists()
    empty = run(backup_command, [str(tmp_path / "b"), "--data-dir", str(tmp_path / "none")])
    assert empty.exit_code == 1
    assert "no server has kept anything" in empty.output
