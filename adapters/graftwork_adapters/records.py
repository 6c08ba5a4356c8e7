"""What the registry keeps: frozen records, in the registry's own words. No torch."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class VersionDraft:
    """A checked version before it has a number."""

    digest: str  # "sha256:..." over its files; the folder's name in the store
    method: str  # PEFT's name, such as "LORA"
    rank: int  # the largest, 0 for methods without one
    num_virtual_tokens: int
    num_parameters: int
    size_bytes: int  # of its files on disk
    base_digest: str  # the base it was checked against
    base_verified: bool  # whether its files name that base themselves
    source: str  # a path or URI, or "upload"
    labels: tuple[str, ...] = ()  # of a classifier; one of a reward model


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """An immutable version of an adapter."""

    adapter: str
    version: int  # 1, 2, ... per adapter, never given twice
    digest: str
    method: str
    rank: int
    num_virtual_tokens: int
    num_parameters: int
    size_bytes: int
    base_digest: str
    base_verified: bool
    source: str
    create_time_ns: int  # since the epoch
    labels: tuple[str, ...] = ()
    # Whose next version replaces it: it has no row, and its files do not survive the process.
    # "" for a version that stays.
    ephemeral_owner: str = ""

    @property
    def is_ephemeral(self) -> bool:
        return self.ephemeral_owner != ""

    @property
    def selector(self) -> str:
        return f"{self.adapter}@{self.version}"


@dataclass(frozen=True, slots=True)
class TrafficShare:
    version: int
    percent: int  # 1 to 100; those of an adapter add up to 100


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """A name and what it points at."""

    name: str
    live_version: int  # 0: none
    traffic_split: tuple[TrafficShare, ...]  # by version; overrides live_version unless empty
    pinned: bool
    create_time_ns: int
    update_time_ns: int

    @property
    def serving_versions(self) -> frozenset[int]:
        """Versions that a request by name alone may get, and the live one."""
        shares = {share.version for share in self.traffic_split}
        return frozenset(shares | ({self.live_version} if self.live_version else set()))


@dataclass(frozen=True, slots=True)
class AdapterChange:
    """New values of an adapter's fields; None leaves a field as it is."""

    live_version: int | None = None  # 0: none is live
    traffic_split: tuple[TrafficShare, ...] | None = None  # (): back to live_version
    pinned: bool | None = None


@dataclass(frozen=True, slots=True)
class Recovery:
    """What opening a registry after a crash had to put right."""

    lost_versions: tuple[VersionRecord, ...] = ()  # registered, but their folder is gone
    collected_digests: tuple[str, ...] = field(default=())  # folders that no version names
