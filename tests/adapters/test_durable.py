"""Files and folders that are there in full or not at all."""

import os
from pathlib import Path

import pytest
from graftwork_adapters.durable import new_folder, write_file


def test_a_file_takes_the_place_of_what_is_there(tmp_path: Path):
    path = tmp_path / "new" / "file"
    write_file(path, b"one")
    write_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "file"
    write_file(path, b"one")

    def fail(_descriptor: int) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no"):
        write_file(path, b"two")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_there_in_full_or_not_at_all(tmp_path: Path):
    path = tmp_path / "folder"

    def fail() -> None:
        with new_folder(path) as draft:
            (draft / "half").write_bytes(b"x")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not list(tmp_path.iterdir())
    for content in (b"first", b"second"):
        with new_folder(path) as draft:
            (draft / "sub").mkdir()
            (draft / "sub" / "file").write_bytes(content)
            assert not path.exists() or content == b"second"
    assert (path / "sub" / "file").read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_published_is_synced_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def note(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def note_rename(draft: Path, target: Path) -> Path:
        synced.append("renamed")
        return rename(draft, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "rename", note_rename)
    with new_folder(tmp_path / "folder") as draft:
        (draft / "file").write_bytes(b"x")
    assert synced == ["file", draft.name, "renamed", tmp_path.name]
