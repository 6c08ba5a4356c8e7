"""The registry's rows in SQLite: durable before a change is acknowledged.

The registry (registry.py) holds everything in memory and writes through; rows are read at start
only. Every method but `load` runs inside a `transaction`.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from graftwork_adapters.errors import StorageFull
from graftwork_adapters.records import AdapterRecord, TrafficShare, VersionRecord

# One script per schema version, applied in order; PRAGMA user_version counts those applied.
_MIGRATIONS = (
    """
    CREATE TABLE adapters (
        name TEXT PRIMARY KEY,
        next_version INTEGER NOT NULL,
        live_version INTEGER,
        pinned INTEGER NOT NULL,
        create_time_ns INTEGER NOT NULL,
        update_time_ns INTEGER NOT NULL,
        FOREIGN KEY (name, live_version) REFERENCES versions (adapter, version)
            DEFERRABLE INITIALLY DEFERRED
    ) STRICT;
    CREATE TABLE versions (
        adapter TEXT NOT NULL REFERENCES adapters (name),
        version INTEGER NOT NULL,
        digest TEXT NOT NULL,
        method TEXT NOT NULL,
        rank INTEGER NOT NULL,
        num_virtual_tokens INTEGER NOT NULL,
        num_parameters INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL,
        base_digest TEXT NOT NULL,
        base_verified INTEGER NOT NULL,
        source TEXT NOT NULL,
        create_time_ns INTEGER NOT NULL,
        PRIMARY KEY (adapter, version)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE traffic_shares (
        adapter TEXT NOT NULL,
        version INTEGER NOT NULL,
        percent INTEGER NOT NULL CHECK (percent BETWEEN 1 AND 100),
        PRIMARY KEY (adapter, version),
        FOREIGN KEY (adapter, version) REFERENCES versions (adapter, version)
    ) STRICT, WITHOUT ROWID;
    -- What was live before, the latest last; a deleted version leaves it.
    CREATE TABLE live_history (
        id INTEGER PRIMARY KEY,
        adapter TEXT NOT NULL,
        version INTEGER NOT NULL,
        FOREIGN KEY (adapter, version) REFERENCES versions (adapter, version) ON DELETE CASCADE
    ) STRICT;
    CREATE INDEX live_history_of_version ON live_history (adapter, version);
    -- Answers to mutations by the caller's request_id.
    CREATE TABLE requests (
        request_id TEXT PRIMARY KEY,
        fingerprint TEXT NOT NULL,
        answer TEXT NOT NULL,
        create_time_ns INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX requests_by_time ON requests (create_time_ns);
    """,
    """
    ALTER TABLE versions ADD COLUMN labels TEXT NOT NULL DEFAULT '[]';  -- a JSON list of names
    """,
)
_BUSY_TIMEOUT_S = 5.0
# Ephemeral versions have no row.
_VERSION_COLUMNS = tuple(f.name for f in fields(VersionRecord) if f.name != "ephemeral_owner")


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """All rows of one adapter."""

    record: AdapterRecord
    next_version: int
    versions: Mapping[int, VersionRecord]  # by number, ascending
    live_history: tuple[int, ...]  # versions that were live before, the latest last


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    fingerprint: str
    answer: dict[str, Any]


class RegistryDatabase:
    """Used under the registry's write lock, from any thread."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(
            path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        self._connection.row_factory = sqlite3.Row
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._migrate()

    def close(self) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block's changes, durably, or none of them. Raises StorageFull."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            # Foreign keys that are checked late may still refuse here.
            self._connection.execute("COMMIT")
        except BaseException as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise StorageFull from error
            raise

    def load(self) -> list[StoredAdapter]:
        """Everything, by name."""
        versions: dict[str, dict[int, VersionRecord]] = {}
        for row in self._connection.execute("SELECT * FROM versions ORDER BY adapter, version"):
            versions.setdefault(row["adapter"], {})[row["version"]] = _version(row)
        shares: dict[str, list[TrafficShare]] = {}
        for row in self._connection.execute(
            "SELECT * FROM traffic_shares ORDER BY adapter, version"
        ):
            share = TrafficShare(row["version"], row["percent"])
            shares.setdefault(row["adapter"], []).append(share)
        history: dict[str, list[int]] = {}
        for row in self._connection.execute("SELECT * FROM live_history ORDER BY id"):
            history.setdefault(row["adapter"], []).append(row["version"])
        return [
            StoredAdapter(
                record=AdapterRecord(
                    name=row["name"],
                    live_version=row["live_version"] or 0,
                    traffic_split=tuple(shares.get(row["name"], ())),
                    pinned=bool(row["pinned"]),
                    create_time_ns=row["create_time_ns"],
                    update_time_ns=row["update_time_ns"],
                ),
                next_version=row["next_version"],
                versions=versions.get(row["name"], {}),
                live_history=tuple(history.get(row["name"], ())),
            )
            for row in self._connection.execute("SELECT * FROM adapters ORDER BY name")
        ]

    def save_adapter(self, adapter: StoredAdapter) -> None:
        """Writes an adapter's own row, its traffic split and history, but not its versions. A live
        version may be inserted after it in the same transaction."""
        record = adapter.record
        execute = self._connection.execute
        execute(
            "INSERT INTO adapters VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
            "next_version = excluded.next_version, live_version = excluded.live_version, "
            "pinned = excluded.pinned, update_time_ns = excluded.update_time_ns",
            (
                record.name,
                adapter.next_version,
                record.live_version or None,
                int(record.pinned),
                record.create_time_ns,
                record.update_time_ns,
            ),
        )
        execute("DELETE FROM traffic_shares WHERE adapter = ?", (record.name,))
        for share in record.traffic_split:
            execute(
                "INSERT INTO traffic_shares VALUES (?, ?, ?)",
                (record.name, share.version, share.percent),
            )
        execute("DELETE FROM live_history WHERE adapter = ?", (record.name,))
        for version in adapter.live_history:
            execute(
                "INSERT INTO live_history (adapter, version) VALUES (?, ?)", (record.name, version)
            )

    def insert_version(self, version: VersionRecord) -> None:
        marks = ", ".join("?" * len(_VERSION_COLUMNS))
        columns = ", ".join(_VERSION_COLUMNS)
        values = {**asdict(version), "labels": json.dumps(version.labels)}
        self._connection.execute(
            f"INSERT INTO versions ({columns}) VALUES ({marks})",  # noqa: S608 - fixed names
            tuple(values[name] for name in _VERSION_COLUMNS),
        )

    def delete_version(self, version: VersionRecord) -> None:
        self._connection.execute(
            "DELETE FROM versions WHERE adapter = ? AND version = ?",
            (version.adapter, version.version),
        )

    def answer_of(self, request_id: str) -> StoredAnswer | None:
        row = self._connection.execute(
            "SELECT fingerprint, answer FROM requests WHERE request_id = ?", (request_id,)
        ).fetchone()
        return None if row is None else StoredAnswer(row["fingerprint"], json.loads(row["answer"]))

    def save_answer(self, request_id: str, stored: StoredAnswer, now_ns: int) -> None:
        self._connection.execute(
            "INSERT INTO requests VALUES (?, ?, ?, ?)",
            (request_id, stored.fingerprint, json.dumps(stored.answer), now_ns),
        )

    def forget_answers(self, before_ns: int) -> None:
        self._connection.execute("DELETE FROM requests WHERE create_time_ns < ?", (before_ns,))

    def _migrate(self) -> None:
        (applied,) = self._connection.execute("PRAGMA user_version").fetchone()
        if applied > len(_MIGRATIONS):
            raise RuntimeError(
                f"the registry has schema {applied}, written by a newer Graftwork than this one, "
                f"which knows schema {len(_MIGRATIONS)}"
            )
        for number, script in enumerate(_MIGRATIONS[applied:], start=applied + 1):
            # executescript commits by itself, so the transaction is part of the script.
            self._connection.executescript(
                f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;"
            )


def _version(row: sqlite3.Row) -> VersionRecord:
    values = {name: row[name] for name in _VERSION_COLUMNS}
    verified, labels = bool(row["base_verified"]), tuple(json.loads(row["labels"]))
    return VersionRecord(**{**values, "base_verified": verified, "labels": labels})
