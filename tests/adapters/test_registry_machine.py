"""The registry against a model of it: no version lost, references right, names unambiguous."""

import shutil
import tempfile
from collections import Counter
from pathlib import Path

from graftwork_adapters.errors import (
    NoLiveVersion,
    NothingToRollBack,
    UnknownAdapter,
    VersionInUse,
)
from graftwork_adapters.leases import Lease
from graftwork_adapters.records import AdapterChange, TrafficShare
from graftwork_adapters.selector import Selector
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.adapters.registry_helpers import OpenRegistry

NAMES = st.sampled_from(["a", "b"])
CONTENTS = st.sampled_from([b"x", b"y", b"z"])
NUMBERS = st.integers(1, 5)


class RegistryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.opened = OpenRegistry(self.folder)
        self.digests: dict[tuple[str, int], str] = {}  # versions that exist
        self.live: dict[str, int] = {}
        self.splits: dict[str, dict[int, int]] = {}
        self.num_given: Counter[str] = Counter()
        self.leases: list[Lease] = []

    def teardown(self) -> None:
        self.opened.close()
        shutil.rmtree(self.folder)

    @rule(name=NAMES, content=CONTENTS, make_live=st.sampled_from([None, True, False]))
    def register(self, name: str, content: bytes, make_live: bool | None) -> None:
        version = self.opened.register(name, content, make_live=make_live)
        self.num_given[name] += 1
        assert version.version == self.num_given[name]
        self.digests[name, version.version] = version.digest
        if make_live or (make_live is None and not self.live.get(name)):
            self.live[name] = version.version

    @rule(name=NAMES, number=st.integers(0, 5))
    def set_live(self, name: str, number: int) -> None:
        try:
            self.opened.registry.update(name, AdapterChange(live_version=number))
        except UnknownAdapter:
            assert not self.num_given[name] or (number and (name, number) not in self.digests)
        else:
            self.live[name] = number

    @rule(name=NAMES, first=NUMBERS, second=NUMBERS, percent=st.integers(1, 99))
    def split(self, name: str, first: int, second: int, percent: int) -> None:
        if first == second:
            return
        shares = {first: percent, second: 100 - percent}
        change = AdapterChange(traffic_split=tuple(TrafficShare(*s) for s in shares.items()))
        try:
            self.opened.registry.update(name, change)
        except UnknownAdapter:
            assert not all((name, number) in self.digests for number in shares)
        else:
            self.splits[name] = shares

    @rule(name=NAMES)
    def rollback(self, name: str) -> None:
        try:
            adapter = self.opened.registry.rollback(name)
        except (UnknownAdapter, NothingToRollBack):
            return
        assert adapter.live_version != self.live.get(name, 0)
        assert (name, adapter.live_version) in self.digests
        self.live[name] = adapter.live_version
        self.splits.pop(name, None)

    @rule(name=NAMES, number=NUMBERS)
    def delete(self, name: str, number: int) -> None:
        try:
            self.opened.registry.delete_version(Selector(name, number))
        except UnknownAdapter:
            assert (name, number) not in self.digests
        except VersionInUse:
            assert number == self.live.get(name) or number in self.splits.get(name, {})
        else:
            assert number != self.live.get(name)
            assert number not in self.splits.get(name, {})
            del self.digests[name, number]

    @rule(name=NAMES, draw=st.floats(0, 1, exclude_max=True), key=st.sampled_from(["", "k"]))
    def resolve(self, name: str, draw: float, key: str) -> None:
        expected = set(self.splits.get(name) or {self.live.get(name, 0)})
        try:
            lease = self.opened.registry.resolve(Selector(name), sticky_key=key, draw=draw)
        except (UnknownAdapter, NoLiveVersion):
            assert expected == {0}
            return
        assert lease.version.version in expected
        self.leases.append(lease)

    @rule(name=NAMES, number=NUMBERS)
    def resolve_version(self, name: str, number: int) -> None:
        try:
            lease = self.opened.registry.resolve(Selector(name, number))
        except UnknownAdapter:
            assert (name, number) not in self.digests
            return
        assert lease.version.digest == self.digests[name, number]
        self.leases.append(lease)

    @rule(index=st.integers(0, 20), times=st.integers(1, 2))
    def release(self, index: int, times: int) -> None:
        if index < len(self.leases):
            lease = self.leases.pop(index)
            for _ in range(times):
                lease.release()

    @rule()
    def restart(self) -> None:
        self.opened.close()
        self.leases.clear()
        self.opened = OpenRegistry(self.folder)
        assert self.opened.registry.recovery.lost_versions == ()

    @invariant()
    def versions_and_pointers_agree(self) -> None:
        page = self.opened.registry.list_versions(page_size=1000)
        assert {(v.adapter, v.version): v.digest for v in page.items} == self.digests
        for name, number in self.live.items():
            adapter = self.opened.registry.get_adapter(name)
            assert adapter.live_version == number
            split = {share.version: share.percent for share in adapter.traffic_split}
            assert split == self.splits.get(name, {})

    @invariant()
    def leases_and_files_agree(self) -> None:
        held = Counter(lease.version.digest for lease in self.leases)
        assert self.opened.registry.leases() == held
        assert self.opened.store.digests() == {*self.digests.values(), *held}


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.settings = settings(max_examples=12, stateful_step_count=25)
