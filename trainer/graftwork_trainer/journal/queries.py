"""Lists of the journal, newest first, in pages that go on after the last id of the one before."""

import base64
import binascii
import hashlib
import json
from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from graftwork.status import InvalidFieldError

from graftwork_trainer.journal import schema
from graftwork_trainer.journal.records import (
    Feedback,
    FeedbackFilter,
    Generation,
    GenerationFilter,
    Page,
    TargetKind,
)
from graftwork_trainer.journal.rows import to_feedback, to_generation

_CHUNK = 400

_generations = schema.generations.c
_feedback = schema.feedback.c
_links = schema.feedback_generations.c


def list_feedback(
    connection: sa.Connection, wanted: FeedbackFilter, page_size: int, page_token: str
) -> Page[Feedback]:
    """Raises InvalidFieldError for a token that this list has not given."""
    query = sa.select(schema.feedback).where(*_feedback_conditions(wanted))
    rows, token = _page(
        connection, query, _feedback.id, wanted, page_size=page_size, page_token=page_token
    )
    return Page(tuple(map(to_feedback, rows)), token)


def list_generations(
    connection: sa.Connection, wanted: GenerationFilter, page_size: int, page_token: str
) -> Page[Generation]:
    """Raises InvalidFieldError for a token that this list has not given."""
    query = sa.select(schema.generations).where(*_generation_conditions(wanted))
    rows, token = _page(
        connection, query, _generations.id, wanted, page_size=page_size, page_token=page_token
    )
    return Page(tuple(map(to_generation, rows)), token)


def count_feedback(connection: sa.Connection, wanted: FeedbackFilter) -> int:
    query = sa.select(sa.func.count()).select_from(schema.feedback)
    return connection.scalars(query.where(*_feedback_conditions(wanted))).one()


def generations_of(
    connection: sa.Connection, key: sa.Column[Any], values: Collection[str]
) -> list[Generation]:
    """The generations whose id, group or episode is among `values`, oldest first."""
    found: list[Generation] = []
    ordered = sorted(set(values))
    for start in range(0, len(ordered), _CHUNK):
        query = sa.select(schema.generations).where(key.in_(ordered[start : start + _CHUNK]))
        found += map(to_generation, connection.execute(query).mappings())
    return sorted(found, key=lambda generation: generation.id)


def oldest_feedback(
    connection: sa.Connection, wanted: FeedbackFilter, after_id: str, limit: int
) -> list[Feedback]:
    """Up to `limit` items with greater ids than `after_id`, oldest first."""
    query = sa.select(schema.feedback).where(*_feedback_conditions(wanted), _feedback.id > after_id)
    rows = connection.execute(query.order_by(_feedback.id).limit(limit)).mappings()
    return [to_feedback(row) for row in rows]


def _page(
    connection: sa.Connection,
    query: sa.Select[Any],
    key: sa.Column[Any],
    wanted: FeedbackFilter | GenerationFilter,
    *,
    page_size: int,
    page_token: str,
) -> tuple[Sequence[sa.RowMapping], str]:
    """The rows of a page, and the token of the next one."""
    last = _decode(page_token, wanted)
    if last:
        query = query.where(key < last)
    rows = connection.execute(query.order_by(key.desc()).limit(page_size + 1)).mappings().all()
    if len(rows) <= page_size:
        return rows, ""
    rows = rows[:page_size]
    return rows, _encode(rows[-1]["id"], wanted)


def _feedback_conditions(wanted: FeedbackFilter) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    if wanted.generation_id:
        about = sa.select(_links.feedback_id).where(_links.generation_id == wanted.generation_id)
        conditions.append(_feedback.id.in_(about))
    for column, value in (
        (_feedback.group_id, wanted.group_id),
        (_feedback.episode_id, wanted.episode_id),
        (_feedback.author, wanted.author),
    ):
        if value:
            conditions.append(column == value)
    for column, values in (
        (_feedback.task, wanted.tasks),
        (_feedback.kind, wanted.kinds),
        (_feedback.source, wanted.sources),
    ):
        if values:
            conditions.append(column.in_([str(value) for value in values]))
    if not wanted.include_superseded:
        conditions.append(_feedback.superseded_by == "")
    return [*conditions, *_between(_feedback.create_time_ns, wanted)]


def _generation_conditions(wanted: GenerationFilter) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    if wanted.ids:
        conditions.append(_generations.id.in_(wanted.ids))
    for column, value in (
        (_generations.group_id, wanted.group_id),
        (_generations.episode_id, wanted.episode_id),
        (_generations.task, wanted.task),
    ):
        if value:
            conditions.append(column == value)
    if wanted.adapter is not None:
        conditions.append(_generations.adapter == wanted.adapter)
        if not wanted.adapter:
            conditions.append(~_generations.is_composed)
    if wanted.version is not None:
        conditions.append(_generations.version == wanted.version)
    if wanted.origins:
        conditions.append(_generations.origin.in_([str(origin) for origin in wanted.origins]))
    if wanted.with_feedback:
        conditions.append(_has_feedback())
    return [*conditions, *_between(_generations.create_time_ns, wanted)]


def _has_feedback() -> sa.ColumnElement[bool]:
    """Feedback on the generation itself, or on its group or episode."""
    itself = sa.exists().where(_links.generation_id == _generations.id)
    return sa.or_(
        itself,
        *(
            sa.exists().where(
                _feedback.target_kind == kind.value, _feedback.target_id == column, column != ""
            )
            for kind, column in (
                (TargetKind.GROUP, _generations.group_id),
                (TargetKind.EPISODE, _generations.episode_id),
            )
        ),
    )


def _between(
    column: sa.Column[Any], wanted: FeedbackFilter | GenerationFilter
) -> list[sa.ColumnElement[bool]]:
    conditions: list[sa.ColumnElement[bool]] = []
    if wanted.after_ns is not None:
        conditions.append(column >= wanted.after_ns)
    if wanted.before_ns is not None:
        conditions.append(column < wanted.before_ns)
    return conditions


def _encode(last_id: str, wanted: FeedbackFilter | GenerationFilter) -> str:
    text = json.dumps([_list_digest(wanted), last_id], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode()


def _decode(token: str, wanted: FeedbackFilter | GenerationFilter) -> str:
    if token == "":
        return ""
    try:
        value = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        value = None
    match value:
        case [str(of_list), str(last_id)] if of_list == _list_digest(wanted):
            return last_id
    raise InvalidFieldError("page_token", "is not one that this list gave for this filter")


def _list_digest(wanted: FeedbackFilter | GenerationFilter) -> str:
    """The list and its filter: a token goes on with the same ones only."""
    return hashlib.sha256(repr(wanted).encode()).hexdigest()[:16]
