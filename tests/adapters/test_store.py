import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from graftwork_adapters.errors import ArtifactTooLarge, InvalidArtifact, StorageFull
from graftwork_adapters.folder import CONFIG_FILE, FILES, WEIGHTS_FILE
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.selector import Selector
from graftwork_adapters.store import ImmutableStore

from tests.adapters.registry_helpers import OpenRegistry, staged

LIMITS = AdapterLimits(max_config_bytes=10, max_weights_bytes=100)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImmutableStore]:
    store = ImmutableStore(tmp_path, LIMITS)
    yield store
    store.close()


def add(store: ImmutableStore, content: bytes) -> str:
    with staged(store, content) as staging:
        digest = staging.finish()
        staging.commit()
    return digest


def staging_folders(store: ImmutableStore) -> list[Path]:
    return list(store._staging.iterdir())


def test_equal_content_is_one_folder(store: ImmutableStore) -> None:
    digest = add(store, b"weights")
    assert add(store, b"weights") == digest
    assert add(store, b"other") != digest
    assert len(store.digests()) == 2
    assert (store.path(digest) / WEIGHTS_FILE).read_bytes() == b"weights"
    assert staging_folders(store) == []


def test_the_order_of_files_and_the_size_of_chunks_do_not_matter(store: ImmutableStore) -> None:
    with store.stage() as staging:
        for chunk in (b"wei", b"ghts"):
            staging.write(WEIGHTS_FILE, chunk)
        staging.write(CONFIG_FILE, b"{}")
        assert staging.finish() == add(store, b"weights")


def test_what_is_not_committed_is_gone(store: ImmutableStore) -> None:
    with staged(store, b"weights") as staging:
        staging.finish()
    assert store.digests() == frozenset()
    assert staging_folders(store) == []
    with pytest.raises(RuntimeError, match="discarded"):
        staging.write(CONFIG_FILE, b"{}")


def test_leftovers_of_a_crash_are_cleaned(tmp_path: Path) -> None:
    first = ImmutableStore(tmp_path, LIMITS)
    digest = add(first, b"weights")
    abandoned = staged(first, b"half")
    first.close()
    second = ImmutableStore(tmp_path, LIMITS)
    assert staging_folders(second) == []
    assert second.digests() == {digest}
    second.close()
    abandoned.discard()


def test_one_process_at_a_time(store: ImmutableStore, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="another process"):
        ImmutableStore(tmp_path, LIMITS)


@pytest.mark.parametrize(
    "filename",
    [
        "",
        ".",
        "..",
        "/etc/passwd",
        "../adapter_config.json",
        "a/adapter_config.json",
        "README.md",
        "adapter_model.bin",
        "adapter_config.json\x00",
    ],
)
def test_other_filenames(store: ImmutableStore, filename: str) -> None:
    with store.stage() as staging, pytest.raises(InvalidArtifact):
        staging.write(filename, b"data")


def test_files_over_the_limit(store: ImmutableStore) -> None:
    with store.stage() as staging:
        staging.write(CONFIG_FILE, bytes(10))
        with pytest.raises(ArtifactTooLarge, match=f"{CONFIG_FILE} is larger than the 10 bytes"):
            staging.write(CONFIG_FILE, b"1")


@pytest.mark.parametrize("filename", FILES)
def test_missing_and_empty_files(store: ImmutableStore, filename: str) -> None:
    with store.stage() as staging:
        staging.write(filename, b"{}")
        with pytest.raises(InvalidArtifact, match="is missing"):
            staging.finish()
    with store.stage() as staging:
        for name in FILES:
            staging.write(name, b"" if name == filename else b"{}")
        with pytest.raises(InvalidArtifact, match=f"{filename} is empty"):
            staging.finish()


def test_chunks_of_a_file_follow_each_other(store: ImmutableStore) -> None:
    with staged(store, b"weights") as staging, pytest.raises(InvalidArtifact, match="follow"):
        staging.write(CONFIG_FILE, b"}")


def test_deleting_twice(store: ImmutableStore) -> None:
    digest = add(store, b"weights")
    store.delete(digest)
    store.delete(digest)
    assert store.size_bytes(digest) is None
    assert staging_folders(store) == []


def test_what_is_not_a_digest(store: ImmutableStore) -> None:
    for text in ("", "sha256:..", "sha256:" + "a" * 63, "../" + "a" * 64):
        with pytest.raises(ValueError, match="not a digest"):
            store.path(text)


def test_a_full_disk(store: ImmutableStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with staged(store, b"weights") as staging:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageFull, match="no room"):
            staging.finish()
    monkeypatch.undo()
    assert staging_folders(store) == []


def test_a_full_registry_leaves_no_folder(tmp_path: Path) -> None:
    opened = OpenRegistry(tmp_path)
    first = opened.register("a", b"1")
    connection = opened.registry._database._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        for number in range(1000):
            opened.register("a", f"content {number}".encode())

    with pytest.raises(StorageFull):
        fill()
    num_versions = len(opened.registry.list_versions(page_size=1000).items)
    assert len(opened.store.digests()) == num_versions
    connection.execute("PRAGMA max_page_count = 100000")
    assert opened.register("a", b"2").version == num_versions + 1
    assert opened.registry.lookup(Selector(first.adapter)).version == 1
    opened.close()
