"""Takes generations out of the journal, with the feedback on them. Runs inside a transaction."""

from collections.abc import Collection, Iterator
from typing import Any

import sqlalchemy as sa

from graftwork_trainer.journal import schema
from graftwork_trainer.journal.records import Deletion, TargetKind
from graftwork_trainer.journal.writer import insert_new

_CHUNK = 400
_MAX_ID_CHARS = 36  # longer ones never were

_generations = schema.generations.c
_feedback = schema.feedback.c
_links = schema.feedback_generations.c


def delete_ids(connection: sa.Connection, ids: Collection[str]) -> Deletion:
    """The generations with these ids, as far as they exist; versions trained on them are named even
    where they have expired."""
    found = _ids_in(connection, _generations.id, _generations.id, ids)
    expired = {one for one in ids if len(one) <= _MAX_ID_CHARS}
    return _remembered(connection, _delete(connection, found, set(), also_expired=expired))


def delete_author(connection: sa.Connection, author: str) -> Deletion:
    """All generations that this author's feedback is about, and all of this author's feedback."""
    own = set(connection.scalars(sa.select(_feedback.id).where(_feedback.author == author)).all())
    about = _ids_in(connection, _links.generation_id, _links.feedback_id, own)
    for kind, column in (
        (TargetKind.GROUP, _generations.group_id),
        (TargetKind.EPISODE, _generations.episode_id),
    ):
        targets = connection.scalars(
            sa.select(_feedback.target_id).where(
                _feedback.author == author, _feedback.target_kind == kind.value
            )
        )
        about |= _ids_in(connection, _generations.id, column, set(targets))
    return _remembered(connection, _delete(connection, about, own))


def delete_episode(connection: sa.Connection, episode_id: str) -> Deletion:
    """All generations of an episode, and all feedback on it or on anything of it."""
    of_episode = sa.select(_generations.id).where(_generations.episode_id == episode_id)
    on_it = sa.select(_feedback.id).where(_feedback.episode_id == episode_id)
    deleted = _delete(
        connection, set(connection.scalars(of_episode)), set(connection.scalars(on_it))
    )
    return _remembered(connection, deleted)


def delete_expired(connection: sa.Connection, before_ns: int, limit: int) -> Deletion:
    """Up to `limit` of the oldest generations begun before a time, with the feedback on them; then
    up to `limit` items of feedback of that age that are about no generation."""
    old = sa.select(_generations.id).where(_generations.create_time_ns < before_ns)
    ids = set(connection.scalars(old.order_by(_generations.create_time_ns).limit(limit)))
    if ids:
        return _delete(connection, ids, set())
    on_prompts = sa.select(_feedback.id).where(
        _feedback.create_time_ns < before_ns,
        _feedback.target_kind == TargetKind.PROMPT.value,
    )
    return _delete(connection, set(), set(connection.scalars(on_prompts.limit(limit))))


def _delete(
    connection: sa.Connection,
    generations: set[str],
    feedback: set[str],
    *,
    also_expired: Collection[str] = (),
) -> Deletion:
    """Deletes generations, feedback, all feedback that speaks of these generations, and that on
    groups and episodes of which nothing is left."""
    groups = _ids_in(connection, _generations.group_id, _generations.id, generations)
    episodes = _ids_in(connection, _generations.episode_id, _generations.id, generations)
    feedback = feedback | _ids_in(connection, _links.feedback_id, _links.generation_id, generations)
    num_generations = _delete_where(connection, schema.generations, _generations.id, generations)
    for kind, column, ids in (
        (TargetKind.GROUP, _generations.group_id, groups),
        (TargetKind.EPISODE, _generations.episode_id, episodes - {""}),
    ):
        gone = ids - _ids_in(connection, column, column, ids)
        feedback |= _ids_in(
            connection, _feedback.id, _feedback.target_id, gone, _feedback.target_kind == kind.value
        )
    items = generations | feedback | set(also_expired)
    trained_on = schema.trained_on.c
    versions = _ids_in(connection, trained_on.version, trained_on.item_id, items)
    num_feedback = _delete_where(connection, schema.feedback, _feedback.id, feedback)
    _delete_where(connection, schema.feedback_generations, _links.feedback_id, feedback)
    return Deletion(num_generations, num_feedback, tuple(sorted(versions)), frozenset(items))


def _remembered(connection: sa.Connection, deletion: Deletion) -> Deletion:
    """Keeps the ids for as long as data sets may have been made of what they named."""
    rows = [{"item_id": item} for item in sorted(deletion.items)]
    insert_new(connection, schema.deleted_items, rows)
    return deletion


def _ids_in(
    connection: sa.Connection,
    wanted: sa.Column[Any],
    key: sa.Column[Any],
    values: Collection[str],
    *conditions: sa.ColumnElement[bool],
) -> set[str]:
    found: set[str] = set()
    for part in _parts(values):
        query = sa.select(wanted).where(key.in_(part), *conditions).distinct()
        found.update(connection.scalars(query))
    return found


def _delete_where(
    connection: sa.Connection, table: sa.Table, key: sa.Column[Any], values: Collection[str]
) -> int:
    return sum(
        connection.execute(sa.delete(table).where(key.in_(part))).rowcount
        for part in _parts(values)
    )


def _parts(values: Collection[str]) -> Iterator[list[str]]:
    ordered = sorted(values)
    for start in range(0, len(ordered), _CHUNK):
        yield ordered[start : start + _CHUNK]
