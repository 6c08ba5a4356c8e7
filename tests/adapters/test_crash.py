"""kill -9 while versions are being registered, again and again, on one registry."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from graftwork_adapters.folder import CONFIG_FILE, WEIGHTS_FILE
from graftwork_adapters.records import VersionRecord

from tests.adapters.registry_helpers import OpenRegistry, draft_of

PROCESS = Path(__file__).with_name("registering_process.py")


@pytest.mark.parametrize("rounds", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_while_registering(rounds: int, tmp_path: Path) -> None:
    chance = random.Random(0)
    acknowledged: dict[int, str] = {}
    for _ in range(rounds):
        acknowledged |= register_until_killed(tmp_path, after_s=chance.uniform(0, 0.15))
        check_consistent(tmp_path, acknowledged)
    assert acknowledged


def register_until_killed(folder: Path, *, after_s: float) -> dict[int, str]:
    """Versions that the process said were registered, by number."""
    path = ":".join(entry for entry in sys.path if entry)
    with subprocess.Popen(
        [sys.executable, PROCESS, folder],
        env={"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(after_s)
        process.kill()
        # The last line may be cut; what is not a whole line was not acknowledged.
        lines = process.stdout.read().splitlines(keepends=True)
    pairs = [line.split() for line in lines if line.endswith("\n")]
    return {int(version): digest for version, digest in pairs}


def all_versions(opened: OpenRegistry) -> list[VersionRecord]:
    page = opened.registry.list_versions(page_size=1000)
    found = [*page.items]
    while page.next_page_token:
        page = opened.registry.list_versions(page_size=1000, page_token=page.next_page_token)
        found += page.items
    return found


def check_consistent(folder: Path, acknowledged: dict[int, str]) -> None:
    opened = OpenRegistry(folder)
    versions = all_versions(opened)
    digests = {version.version: version.digest for version in versions}
    assert digests.items() >= acknowledged.items()
    assert sorted(digests) == list(range(1, len(digests) + 1))
    assert opened.registry.recovery.lost_versions == ()
    assert opened.store.digests() == set(digests.values())
    assert list((folder / "store" / "staging").iterdir()) == []
    if versions:
        assert opened.registry.get_adapter("a").live_version == max(digests)
        check_files(opened, digests[max(digests)])
    opened.close()


def check_files(opened: OpenRegistry, digest: str) -> None:
    with opened.store.stage() as staging:
        for filename in (CONFIG_FILE, WEIGHTS_FILE):
            staging.write(filename, (opened.store.path(digest) / filename).read_bytes())
        assert draft_of(staging).digest == digest
