import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from graftwork.status import InvalidFieldError
from graftwork_adapters.errors import (
    AdapterError,
    NoLiveVersion,
    NothingToRollBack,
    RequestIdReused,
    UnknownAdapter,
    VersionInUse,
)
from graftwork_adapters.mutation import MutationRequest
from graftwork_adapters.records import AdapterChange, TrafficShare
from graftwork_adapters.selector import Selector

from tests.adapters.registry_helpers import OpenRegistry, draft_of, staged


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[OpenRegistry]:
    opened = OpenRegistry(tmp_path)
    yield opened
    opened.close()


def resolve_once(opened: OpenRegistry, text: str, **options: object) -> int:
    with opened.registry.resolve(Selector(text), **options) as lease:
        return lease.version.version


def test_versions_count_up_and_the_first_goes_live(opened: OpenRegistry) -> None:
    assert opened.register("a", b"1").version == 1
    assert opened.register("a", b"2").version == 2
    assert resolve_once(opened, "a") == 1
    assert opened.register("a", b"3", make_live=True).version == 3
    assert resolve_once(opened, "a") == 3
    assert opened.registry.get_adapter("a").live_version == 3


def test_a_deleted_number_is_never_given_again(opened: OpenRegistry, tmp_path: Path) -> None:
    opened.register("a", b"1")
    opened.register("a", b"2")
    opened.registry.delete_version(Selector("a", 2))
    opened.close()
    reopened = OpenRegistry(tmp_path)
    assert reopened.register("a", b"2").version == 3
    reopened.close()


def test_unknown_names_and_versions(opened: OpenRegistry) -> None:
    with pytest.raises(UnknownAdapter, match='"nobody" does not exist'):
        opened.registry.resolve(Selector("nobody"))
    opened.register("a", b"1", make_live=False)
    with pytest.raises(UnknownAdapter, match='"a@2" does not exist'):
        opened.registry.resolve(Selector("a", 2))
    with pytest.raises(NoLiveVersion):
        opened.registry.resolve(Selector("a"))
    with pytest.raises(UnknownAdapter) as caught:
        opened.registry.update("a", AdapterChange(live_version=7))
    assert caught.value.field == "adapter.live_version"


def test_rollback_walks_back_through_what_was_live(opened: OpenRegistry) -> None:
    for content in (b"1", b"2", b"3"):
        opened.register("a", content, make_live=True)
    assert opened.registry.rollback("a").live_version == 2
    assert opened.registry.rollback("a").live_version == 1
    with pytest.raises(NothingToRollBack):
        opened.registry.rollback("a")


def test_rollback_skips_deleted_versions_and_ends_a_split(opened: OpenRegistry) -> None:
    for content in (b"1", b"2", b"3"):
        opened.register("a", content, make_live=True)
    opened.registry.delete_version(Selector("a", 2))
    split = (TrafficShare(1, 50), TrafficShare(3, 50))
    opened.registry.update("a", AdapterChange(traffic_split=split))
    rolled_back = opened.registry.rollback("a")
    assert (rolled_back.live_version, rolled_back.traffic_split) == (1, ())


def test_a_split_shares_traffic_and_sticks_to_a_key(opened: OpenRegistry) -> None:
    opened.register("a", b"1")
    opened.register("a", b"2")
    split = (TrafficShare(2, 10), TrafficShare(1, 90))
    opened.registry.update("a", AdapterChange(traffic_split=split))
    drawn = Counter(resolve_once(opened, "a", draw=i / 1000) for i in range(1000))
    assert drawn == {1: 900, 2: 100}
    keys = [f"episode-{i}" for i in range(2000)]
    chosen = {key: resolve_once(opened, "a", sticky_key=key, draw=0.5) for key in keys}
    assert 120 < Counter(chosen.values())[2] < 280
    # A growing canary keeps its episodes.
    split = (TrafficShare(1, 70), TrafficShare(2, 30))
    opened.registry.update("a", AdapterChange(traffic_split=split))
    for key, version in chosen.items():
        if version == 2:
            assert resolve_once(opened, "a", sticky_key=key) == 2
    opened.registry.update("a", AdapterChange(traffic_split=()))
    assert resolve_once(opened, "a", draw=0.99) == 1


@pytest.mark.parametrize(
    ("shares", "field"),
    [
        ([(1, 60), (2, 50)], "adapter.traffic_split"),
        ([(1, 0), (2, 100)], "adapter.traffic_split.percent"),
        ([(1, 50), (1, 50)], "adapter.traffic_split.version"),
    ],
)
def test_impossible_splits(opened: OpenRegistry, shares: list, field: str) -> None:
    opened.register("a", b"1")
    opened.register("a", b"2")
    split = tuple(TrafficShare(version, percent) for version, percent in shares)
    with pytest.raises(InvalidFieldError) as caught:
        opened.registry.update("a", AdapterChange(traffic_split=split))
    assert caught.value.field == field


def test_what_gets_traffic_cannot_be_deleted(opened: OpenRegistry) -> None:
    for content in (b"1", b"2"):
        opened.register("a", content)
    with pytest.raises(VersionInUse, match="live"):
        opened.registry.delete_version(Selector("a", 1))
    split = (TrafficShare(1, 50), TrafficShare(2, 50))
    opened.registry.update("a", AdapterChange(traffic_split=split))
    with pytest.raises(VersionInUse, match="traffic split"):
        opened.registry.delete_version(Selector("a", 2))


def test_files_go_with_the_last_lease(opened: OpenRegistry) -> None:
    opened.register("a", b"1")
    version = opened.register("a", b"2")
    first = opened.registry.resolve(Selector("a", 2))
    second = opened.registry.resolve(Selector("a", 2))
    opened.registry.delete_version(Selector("a", 2))
    with pytest.raises(UnknownAdapter):
        opened.registry.resolve(Selector("a", 2))
    first.release()
    first.release()
    assert opened.store.size_bytes(version.digest) is not None
    second.release()
    assert opened.store.size_bytes(version.digest) is None
    assert opened.registry.leases() == {}


def test_equal_files_are_kept_while_any_version_has_them(opened: OpenRegistry) -> None:
    opened.register("a", b"same")
    other = opened.register("b", b"same")
    opened.register("b", b"other", make_live=True)
    opened.registry.delete_version(Selector("b", 1))
    assert opened.store.size_bytes(other.digest) is not None


def test_a_repeated_request_gets_the_first_answer(opened: OpenRegistry) -> None:
    request = MutationRequest.of("id-1", b"a")
    first = opened.register("a", b"1", request=request)
    assert opened.register("a", b"1", request=request) == first
    assert opened.registry.recall_version(request) == first
    assert len(opened.registry.list_versions("a", page_size=10).items) == 1
    with pytest.raises(RequestIdReused):
        opened.register("a", b"1", request=MutationRequest.of("id-1", b"b"))

    update = MutationRequest.of("id-2", b"u")
    second = opened.register("a", b"2")
    moved = opened.registry.update("a", AdapterChange(live_version=2), request=update)
    opened.registry.update("a", AdapterChange(live_version=1))
    assert opened.registry.update("a", AdapterChange(live_version=2), request=update) == moved
    assert opened.registry.get_adapter("a").live_version == 1

    delete = MutationRequest.of("id-3", b"d")
    for _ in range(2):
        deleted = opened.registry.delete_version(Selector("a", 2), request=delete)
        assert deleted == second


def test_answers_are_forgotten_after_a_week(tmp_path: Path) -> None:
    now_ns = [0]
    opened = OpenRegistry(tmp_path, clock_ns=lambda: now_ns[0])
    request = MutationRequest.of("id-1", b"a")
    opened.register("a", b"1", request=request)
    now_ns[0] = 8 * 24 * 3600 * 10**9
    opened.register("a", b"2", request=MutationRequest.of("id-2", b"a"))
    assert opened.registry.recall_version(request) is None
    opened.close()


def test_pages_cover_everything_once(opened: OpenRegistry) -> None:
    for name in ("c", "a", "b"):
        for content in (b"1", b"2", b"3"):
            opened.register(name, content)
    seen, token = [], ""
    while True:
        page = opened.registry.list_versions(page_size=2, page_token=token)
        seen += [version.selector for version in page.items]
        token = page.next_page_token
        if not token:
            break
    assert seen == [f"{name}@{version}" for name in "abc" for version in (1, 2, 3)]
    page = opened.registry.list_adapters(page_size=2)
    assert [adapter.name for adapter in page.items] == ["a", "b"]
    rest = opened.registry.list_adapters(page_size=2, page_token=page.next_page_token)
    assert ([adapter.name for adapter in rest.items], rest.next_page_token) == (["c"], "")
    for wrong in ("nonsense", page.next_page_token):
        with pytest.raises(InvalidFieldError, match="page_token"):
            opened.registry.list_versions(page_size=2, page_token=wrong)


def test_everything_survives_reopening(opened: OpenRegistry, tmp_path: Path) -> None:
    for content in (b"1", b"2", b"3"):
        opened.register("a", content, make_live=True)
    split = (TrafficShare(1, 20), TrafficShare(3, 80))
    before = opened.registry.update("a", AdapterChange(traffic_split=split, pinned=True))
    versions = opened.registry.list_versions(page_size=10)
    opened.close()
    reopened = OpenRegistry(tmp_path)
    assert reopened.registry.get_adapter("a") == before
    assert reopened.registry.list_versions(page_size=10) == versions
    assert reopened.registry.rollback("a").live_version == 2
    reopened.close()


def test_recovery_drops_lost_versions_and_collects_orphans(
    opened: OpenRegistry, tmp_path: Path
) -> None:
    opened.register("a", b"1")
    lost = opened.register("a", b"2", make_live=True)
    with staged(opened.store, b"orphan") as staging:
        orphan = draft_of(staging).digest
        staging.commit()
    opened.store.delete(lost.digest)
    opened.close()
    reopened = OpenRegistry(tmp_path)
    assert reopened.registry.recovery.lost_versions == (lost,)
    assert reopened.registry.recovery.collected_digests == (orphan,)
    with pytest.raises(NoLiveVersion):
        reopened.registry.resolve(Selector("a"))
    assert reopened.registry.rollback("a").live_version == 1
    assert reopened.register("a", b"3").version == 3
    reopened.close()


def test_a_missing_store_is_not_taken_for_lost_versions(
    opened: OpenRegistry, tmp_path: Path
) -> None:
    version = opened.register("a", b"1")
    opened.store.delete(version.digest)
    opened.close()
    with pytest.raises(RuntimeError, match="restore the store"):
        OpenRegistry(tmp_path)


def test_a_failed_publication_leaves_nothing(opened: OpenRegistry) -> None:
    opened.register("a", b"1")

    def fail() -> None:
        raise OSError("disk on fire")

    with staged(opened.store, b"2") as staging, pytest.raises(OSError, match="fire"):
        opened.registry.register("a", draft_of(staging), publish=fail)
    assert len(opened.registry.list_versions("a", page_size=5).items) == 1
    assert opened.register("a", b"2").version == 2


def test_lookups_race_with_moves_and_deletions(opened: OpenRegistry) -> None:
    """A name always resolves to a version whose files are there."""
    for content in (b"1", b"2"):
        opened.register("a", content)
    failures: list[BaseException] = []
    stop = threading.Event()

    def resolve_forever() -> None:
        try:
            while not stop.is_set():
                with opened.registry.resolve(Selector("a")) as lease:
                    assert opened.store.size_bytes(lease.version.digest) is not None
        except (AdapterError, AssertionError) as error:
            failures.append(error)

    threads = [threading.Thread(target=resolve_forever) for _ in range(3)]
    for thread in threads:
        thread.start()
    for round_number in range(12):
        version = opened.register("a", f"round {round_number}".encode(), make_live=True)
        opened.registry.update("a", AdapterChange(live_version=1))
        opened.registry.delete_version(Selector("a", version.version))
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(opened.store.digests()) == 2


def test_no_torch() -> None:
    """Start-up and the request path must not wait for it."""
    modules = ("registry", "store", "selector", "records", "errors", "paths", "residency")
    imports = ", ".join(f"graftwork_adapters.{module}" for module in modules)
    code = f"import sys, {imports}; sys.exit('torch' in sys.modules)"
    path = ":".join(entry for entry in sys.path if entry)
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, check=True)
