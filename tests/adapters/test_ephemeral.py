"""Versions that belong to an owner and do not outlive its next one, or the process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from graftwork_adapters.errors import EphemeralVersion, NoLiveVersion, UnknownAdapter
from graftwork_adapters.folder import WEIGHTS_FILE
from graftwork_adapters.records import AdapterChange, TrafficShare, VersionRecord
from graftwork_adapters.selector import Selector

from tests.adapters.registry_helpers import OpenRegistry, draft_of, staged


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[OpenRegistry]:
    opened = OpenRegistry(tmp_path)
    yield opened
    opened.close()


def register_ephemeral(
    opened: OpenRegistry, name: str, content: bytes, owner: str = "job"
) -> VersionRecord:
    with staged(opened.store, content, ephemeral=True) as staging:
        return opened.registry.register_ephemeral(
            name, draft_of(staging), owner, publish=staging.commit
        )


def weights(opened: OpenRegistry, version: VersionRecord) -> bytes:
    return (opened.store.path(version.digest) / WEIGHTS_FILE).read_bytes()


def test_it_is_served_by_its_number_alone(opened: OpenRegistry) -> None:
    version = register_ephemeral(opened, "a", b"1")
    assert version.is_ephemeral
    with opened.registry.resolve(Selector("a", version.version)) as lease:
        assert weights(opened, lease.version) == b"1"
    with pytest.raises(NoLiveVersion):
        opened.registry.resolve(Selector("a"))


def test_the_next_one_of_its_owner_replaces_it(opened: OpenRegistry) -> None:
    kept = opened.register("a", b"live")
    first = register_ephemeral(opened, "a", b"1")
    elsewhere = register_ephemeral(opened, "b", b"1b")
    others = register_ephemeral(opened, "a", b"2", owner="another job")
    second = register_ephemeral(opened, "a", b"3")

    assert [v.version for v in (kept, first, others, second)] == [1, 2, 3, 4]
    for version in (kept, elsewhere, others, second):
        assert opened.registry.lookup(Selector(version.adapter, version.version)) == version
        assert opened.store.path(version.digest).exists()
    with pytest.raises(UnknownAdapter):
        opened.registry.lookup(Selector("a", first.version))
    assert not opened.store.path(first.digest).exists()
    assert opened.registry.ephemeral_versions("a", "job") == (second,)


def test_equal_files_are_the_same_version(opened: OpenRegistry) -> None:
    first = register_ephemeral(opened, "a", b"1")
    assert register_ephemeral(opened, "a", b"1") == first


def test_a_request_finishes_on_what_was_replaced(opened: OpenRegistry) -> None:
    first = register_ephemeral(opened, "a", b"1")
    with opened.registry.resolve(Selector("a", first.version)) as lease:
        register_ephemeral(opened, "a", b"2")
        assert weights(opened, lease.version) == b"1"
    assert not opened.store.path(first.digest).exists()


def test_it_can_never_be_live(opened: OpenRegistry) -> None:
    opened.register("a", b"live")
    version = register_ephemeral(opened, "a", b"1").version
    split = (TrafficShare(1, 50), TrafficShare(version, 50))
    for change in (AdapterChange(live_version=version), AdapterChange(traffic_split=split)):
        with pytest.raises(EphemeralVersion, match=f'"a@{version}" is ephemeral'):
            opened.registry.update("a", change)


def test_it_can_be_deleted(opened: OpenRegistry) -> None:
    version = register_ephemeral(opened, "a", b"1")
    opened.registry.delete_version(Selector("a", version.version))
    assert not opened.store.path(version.digest).exists()
    assert opened.registry.ephemeral_versions("a", "job") == ()


def test_only_its_number_outlives_the_process(opened: OpenRegistry, tmp_path: Path) -> None:
    opened.register("a", b"live")
    version = register_ephemeral(opened, "a", b"1")
    opened.close()
    reopened = OpenRegistry(tmp_path)
    assert reopened.registry.recovery.lost_versions == ()
    with pytest.raises(UnknownAdapter):
        reopened.registry.lookup(Selector("a", version.version))
    assert not reopened.store.path(version.digest).exists()
    assert register_ephemeral(reopened, "a", b"1").version == version.version + 1
    reopened.close()


def test_a_version_that_stays_may_have_the_same_files(opened: OpenRegistry, tmp_path: Path) -> None:
    ephemeral = register_ephemeral(opened, "a", b"1")
    lasting = opened.register("a", b"1")
    opened.registry.delete_version(Selector("a", ephemeral.version))
    assert weights(opened, lasting) == b"1"
    opened.close()
    reopened = OpenRegistry(tmp_path)
    assert weights(reopened, reopened.registry.lookup(Selector("a"))) == b"1"
    reopened.close()


def test_a_failed_publication_leaves_nothing(opened: OpenRegistry) -> None:
    first = register_ephemeral(opened, "a", b"1")

    def fail() -> None:
        raise OSError("no room")

    with staged(opened.store, b"2", ephemeral=True) as staging:
        draft = draft_of(staging)
        with pytest.raises(OSError, match="no room"):
            opened.registry.register_ephemeral("a", draft, "job", publish=fail)
    assert opened.registry.ephemeral_versions("a", "job") == (first,)
    assert weights(opened, first) == b"1"
