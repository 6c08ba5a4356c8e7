"""What the journal holds that a batch of feedback is judged by, read in a handful of queries."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from graftwork_trainer.journal import schema
from graftwork_trainer.journal.records import (
    Demonstration,
    Draft,
    Preference,
    Remark,
    TargetKind,
)
from graftwork_trainer.journal.rows import Row, digest, prompt_json, to_json

_CHUNK = 400  # SQLite's oldest limit on the parameters of a statement is 999


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a generation, group or episode that feedback is about."""

    group_id: str
    episode_id: str
    task: str
    input_digest: str
    create_time_ns: int  # of the newest


@dataclass(frozen=True, slots=True)
class Item:
    """A draft, with what it says about what."""

    draft: Draft
    target_id: str
    statement: str

    @classmethod
    def of(cls, draft: Draft) -> "Item":
        target_id = draft.target.id
        if draft.target.prompt is not None:
            target_id = digest(to_json(prompt_json(draft.target.prompt)))
        return cls(draft, target_id, _statement(draft, target_id))


class Evidence:
    """Of the drafts of one batch: their targets, the answers that they compare, and earlier
    feedback, each by its key. The judge adds what it accepts."""

    def __init__(self, connection: sa.Connection, items: Sequence[Item]) -> None:
        self._connection = connection
        drafts = [item.draft for item in items]
        of_kind = {
            kind: {draft.target.id for draft in drafts if draft.target.kind is kind}
            for kind in TargetKind
        }
        answers = {a.generation_id for draft in drafts for a in draft.answers} - {""}
        c, table = schema.generations.c, schema.feedback.c
        self.generations = self._facts(c.id, of_kind[TargetKind.GENERATION] | answers)
        self.groups = self._facts(c.group_id, of_kind[TargetKind.GROUP])
        self.episodes = self._episode_facts(of_kind[TargetKind.EPISODE])
        preferences = [draft for draft in drafts if isinstance(draft.value, Preference)]
        self.completions = self._load_completions(
            {a.generation_id for draft in preferences for a in draft.answers} - {""}
        )
        self.by_id = self._feedback(table.id, {draft.supersedes for draft in drafts} - {""})
        self.by_request = self._feedback(
            table.request_id, {draft.request_id for draft in drafts} - {""}
        )
        self.by_statement = self._feedback(
            table.statement, {item.statement for item in items}, table.superseded_by == ""
        )

    def _facts(self, key: sa.Column[Any], values: Collection[str]) -> dict[str, Facts]:
        c = schema.generations.c
        columns = (c.group_id, c.episode_id, c.task, c.input_digest, c.create_time_ns)
        found: dict[str, Facts] = {}
        for rows in self._chunks(sa.select(key.label("key"), *columns), key, values):
            for row in rows:
                found[row.key] = Facts(
                    row.group_id, row.episode_id, row.task, row.input_digest, row.create_time_ns
                )
        return found

    def _load_completions(self, ids: Collection[str]) -> dict[str, str]:
        """As JSON."""
        c = schema.generations.c
        query = sa.select(c.id, c.completion)
        return {row.id: row.completion for rows in self._chunks(query, c.id, ids) for row in rows}

    def _episode_facts(self, values: Collection[str]) -> dict[str, Facts]:
        c = schema.generations.c
        query = sa.select(
            c.episode_id,
            sa.func.min(c.task).label("first"),
            sa.func.max(c.task).label("last"),
            sa.func.max(c.create_time_ns).label("newest"),
        ).group_by(c.episode_id)
        return {
            row.episode_id: Facts(
                "", row.episode_id, row.first if row.first == row.last else "", "", row.newest
            )
            for rows in self._chunks(query, c.episode_id, values)
            for row in rows
        }

    def _feedback(
        self, key: sa.Column[Any], values: Collection[str], *conditions: sa.ColumnElement[bool]
    ) -> dict[str, Row]:
        query = sa.select(schema.feedback).where(*conditions)
        name = key.name
        return {
            row[name]: dict(row)
            for rows in self._chunks(query, key, values)
            for row in rows.mappings()
        }

    def _chunks(
        self, query: sa.Select[Any], key: sa.Column[Any], values: Collection[str]
    ) -> Iterable[sa.CursorResult[Any]]:
        remaining = sorted(set(values))
        for start in range(0, len(remaining), _CHUNK):
            part = remaining[start : start + _CHUNK]
            yield self._connection.execute(query.where(key.in_(part)))


def _statement(draft: Draft, target_id: str) -> str:
    """What an author may say but once about a target. A thumbs, a reward, a label, a correction or
    a ranking; a preference between the same two answers; the same demonstration or remark."""
    about: Any = None
    match draft.value:
        case Preference(chosen, rejected):
            about = sorted([[a.generation_id, a.text] for a in (chosen, rejected)])
        case Demonstration(text) | Remark(text):
            about = text
    who = [draft.source.value, draft.author]
    return digest(to_json([who, draft.target.kind.value, target_id, draft.kind.value, about]))
