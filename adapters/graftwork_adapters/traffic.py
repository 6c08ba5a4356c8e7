"""Which version a name stands for: the live one, or one of a traffic split."""

import hashlib

from graftwork.status import InvalidFieldError

from graftwork_adapters.errors import NoLiveVersion
from graftwork_adapters.records import AdapterRecord, TrafficShare


def choose_version(adapter: AdapterRecord, *, sticky_key: str, draw: float) -> int:
    """The number of the version that serves a request by name.

    `draw` in [0, 1) picks within a split; a `sticky_key`, such as an episode's id, takes its place,
    so that an episode stays on one version. Raises NoLiveVersion.
    """
    if not adapter.traffic_split:
        if adapter.live_version == 0:
            raise NoLiveVersion(adapter.name)
        return adapter.live_version
    point = 100 * (_sticky_draw(adapter.name, sticky_key) if sticky_key else draw)
    # Shares stand by version, so that a growing canary keeps the episodes it has.
    for share in adapter.traffic_split:
        point -= share.percent
        if point < 0:
            return share.version
    return adapter.traffic_split[-1].version


def check_split(shares: tuple[TrafficShare, ...], *, field: str) -> tuple[TrafficShare, ...]:
    """The shares by version; raises InvalidFieldError that names `field`. () is no split."""
    if not shares:
        return ()
    for share in shares:
        if not 1 <= share.percent <= 100:
            raise InvalidFieldError(
                f"{field}.percent", f"must be 1 to 100; version {share.version} has {share.percent}"
            )
    if len({share.version for share in shares}) != len(shares):
        raise InvalidFieldError(f"{field}.version", "names a version twice")
    if (total := sum(share.percent for share in shares)) != 100:
        raise InvalidFieldError(field, f"shares must add up to 100, not {total}")
    return tuple(sorted(shares, key=lambda share: share.version))


def _sticky_draw(name: str, key: str) -> float:
    """In [0, 1), the same for the same adapter and key, independent between adapters."""
    digest = hashlib.blake2b(f"{name}\0{key}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53
