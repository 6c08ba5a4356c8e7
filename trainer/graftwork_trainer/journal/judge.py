"""Decides on submitted feedback against what the journal holds, many items at once.

Runs inside the writer's transaction: what it reads cannot change before its verdicts are written.
Everything that a batch needs is read in a handful of queries, so that the cost of an item is that
of a few dictionary look-ups.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from graftwork.status import InvalidFieldError, WireError
from graftwork_adapters.errors import RequestIdReused

from graftwork_trainer.journal import schema
from graftwork_trainer.journal.errors import (
    CannotSupersede,
    FeedbackExists,
    GenerationExpired,
    GenerationNotLogged,
    LabelNotInSet,
    UnknownFeedback,
    UnknownTarget,
    UnrelatedAnswers,
)
from graftwork_trainer.journal.records import (
    Answer,
    Demonstration,
    Draft,
    Feedback,
    InlinePrompt,
    Label,
    Preference,
    Ranking,
    Remark,
    TargetKind,
)
from graftwork_trainer.journal.rows import (
    Row,
    digest,
    feedback_row,
    input_json,
    prompt_json,
    to_feedback,
    to_json,
    value_json,
)

Outcome = Feedback | WireError

_CHUNK = 400  # SQLite's oldest limit on the parameters of a statement is 999
_NS_PER_DAY = 86_400 * 10**9


@dataclass(frozen=True, slots=True)
class Rules:
    """What a server decides about feedback."""

    retention_days: float | None = None  # None keeps generations for ever
    labels: Mapping[str, frozenset[str]] = field(default_factory=dict)  # by task; others are free

    def expires_before_ns(self, now_ns: int) -> int:
        """Generations begun earlier are expired."""
        if self.retention_days is None:
            return 0
        return now_ns - int(self.retention_days * _NS_PER_DAY)


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is known of a generation, group or episode that feedback is about."""

    group_id: str
    episode_id: str
    task: str
    input_digest: str
    create_time_ns: int  # of the newest


@dataclass(frozen=True, slots=True)
class _Item:
    draft: Draft
    target_id: str
    statement: str

    @classmethod
    def of(cls, draft: Draft) -> "_Item":
        target_id = draft.target.id
        if draft.target.prompt is not None:
            target_id = digest(to_json(prompt_json(draft.target.prompt)))
        return cls(draft, target_id, _statement(draft, target_id))


class Judge:
    """One pass over a batch. `judge` gives verdicts; `write` makes the accepted ones rows."""

    def __init__(
        self,
        connection: sa.Connection,
        rules: Rules,
        *,
        now_ns: int,
        new_id: Callable[[], str],
        was_dropped: Callable[[str], bool],
        issued_ns: Callable[[str], int | None],
    ) -> None:
        """`was_dropped` knows generations that the journal could not take; `issued_ns` reads the
        time from an id that the server issued, None for any other."""
        self._connection = connection
        self._rules = rules
        self._now_ns = now_ns
        self._new_id = new_id
        self._was_dropped = was_dropped
        self._issued_ns = issued_ns
        self._expires_before = rules.expires_before_ns(now_ns)
        self._accepted: dict[str, Row] = {}  # by feedback id, in order
        self._links: list[Row] = []
        self._superseded: dict[str, str] = {}  # rows of earlier transactions, by whom

    def judge(self, drafts: Sequence[Draft]) -> list[Outcome]:
        """A verdict for each, in order; a draft sees what those before it said."""
        items = [_Item.of(draft) for draft in drafts]
        self._load(items)
        outcomes: list[Outcome] = []
        for item in items:
            try:
                outcomes.append(self._decide(item))
            except WireError as error:
                outcomes.append(error)
        return outcomes

    @property
    def accepted_kinds(self) -> list[str]:
        """Of what is new, one for each item."""
        return [row["kind"] for row in self._accepted.values()]

    def write(self) -> None:
        # A statement is free once what made it is superseded, so that comes first.
        if self._superseded:
            self._connection.execute(
                sa.update(schema.feedback)
                .where(schema.feedback.c.id == sa.bindparam("old"))
                .values(superseded_by=sa.bindparam("new")),
                [{"old": old, "new": new} for old, new in self._superseded.items()],
            )
        if self._accepted:
            self._connection.execute(sa.insert(schema.feedback), list(self._accepted.values()))
        if self._links:
            self._connection.execute(sa.insert(schema.feedback_generations), self._links)

    # Loading

    def _load(self, items: Sequence[_Item]) -> None:
        drafts = [item.draft for item in items]
        of_kind = {
            kind: {draft.target.id for draft in drafts if draft.target.kind is kind}
            for kind in TargetKind
        }
        answers = {a.generation_id for draft in drafts for a in draft.answers} - {""}
        c, table = schema.generations.c, schema.feedback.c
        self._generations = self._facts(c.id, of_kind[TargetKind.GENERATION] | answers)
        self._groups = self._facts(c.group_id, of_kind[TargetKind.GROUP])
        self._episodes = self._episode_facts(of_kind[TargetKind.EPISODE])
        preferences = [draft for draft in drafts if isinstance(draft.value, Preference)]
        self._completions = self._load_completions(
            {a.generation_id for draft in preferences for a in draft.answers} - {""}
        )
        self._by_id = self._feedback(table.id, {draft.supersedes for draft in drafts} - {""})
        self._by_request = self._feedback(
            table.request_id, {draft.request_id for draft in drafts} - {""}
        )
        self._by_statement = self._feedback(
            table.statement, {item.statement for item in items}, table.superseded_by == ""
        )

    def _facts(self, key: sa.Column[Any], values: Collection[str]) -> dict[str, _Facts]:
        c = schema.generations.c
        columns = (c.group_id, c.episode_id, c.task, c.input_digest, c.create_time_ns)
        found: dict[str, _Facts] = {}
        for rows in self._chunks(sa.select(key.label("key"), *columns), key, values):
            for row in rows:
                found[row.key] = _Facts(
                    row.group_id, row.episode_id, row.task, row.input_digest, row.create_time_ns
                )
        return found

    def _load_completions(self, ids: Collection[str]) -> dict[str, str]:
        """As JSON."""
        c = schema.generations.c
        query = sa.select(c.id, c.completion)
        return {row.id: row.completion for rows in self._chunks(query, c.id, ids) for row in rows}

    def _episode_facts(self, values: Collection[str]) -> dict[str, _Facts]:
        c = schema.generations.c
        query = sa.select(
            c.episode_id,
            sa.func.min(c.task).label("first"),
            sa.func.max(c.task).label("last"),
            sa.func.max(c.create_time_ns).label("newest"),
        ).group_by(c.episode_id)
        return {
            row.episode_id: _Facts(
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

    # Deciding

    def _decide(self, item: _Item) -> Feedback:
        draft = item.draft
        repeated = self._by_request.get(draft.request_id) if draft.request_id else None
        if repeated is not None:
            if repeated["fingerprint"] != draft.fingerprint:
                raise RequestIdReused(draft.request_id)
            return to_feedback(repeated)
        facts = self._check_target(draft)
        self._check_answers(draft, facts)
        if isinstance(draft.value, Label):
            labels = self._rules.labels.get(facts.task)
            if labels is not None and draft.value.label not in labels:
                raise LabelNotInSet(draft.value.label, facts.task, sorted(labels))
        old = self._to_supersede(item) if draft.supersedes else None
        said = self._by_statement.get(item.statement)
        if said is not None and (old is None or said["id"] != old["id"]):
            same = said["value"] == to_json(value_json(draft.value))
            raise FeedbackExists(said["id"], draft.kind, same=same)
        return self._accept(item, facts, old)

    def _check_target(self, draft: Draft) -> _Facts:
        target = draft.target
        match target.kind:
            case TargetKind.GENERATION:
                return self._generation(target.id, "feedback.generation_id")
            case TargetKind.GROUP:
                found, where = self._groups.get(target.id), "feedback.group_id"
            case TargetKind.EPISODE:
                found, where = self._episodes.get(target.id), "feedback.episode_id"
            case _:
                return _prompt_facts(target.prompt)
        if found is None:
            if target.kind is TargetKind.GROUP:
                self._raise_if_expired(self._issued_ns(target.id), target.id, where)
            raise UnknownTarget(target.kind, target.id, field=where)
        self._raise_if_expired(found.create_time_ns, target.id, where)
        return found

    def _generation(self, generation_id: str, where: str) -> _Facts:
        found = self._generations.get(generation_id)
        if found is None:
            self._raise_if_expired(self._issued_ns(generation_id), generation_id, where)
            if self._was_dropped(generation_id):
                raise GenerationNotLogged(generation_id, field=where)
            raise UnknownTarget(TargetKind.GENERATION, generation_id, field=where)
        self._raise_if_expired(found.create_time_ns, generation_id, where)
        return found

    def _raise_if_expired(self, time_ns: int | None, target_id: str, where: str) -> None:
        days = self._rules.retention_days
        if days is not None and time_ns is not None and time_ns < self._expires_before:
            raise GenerationExpired(target_id, days, field=where)

    def _check_answers(self, draft: Draft, facts: _Facts) -> None:
        """Generations that are compared must answer the prompt that the target names."""
        for answer, where in _answers(draft):
            if not answer.generation_id:
                continue
            other = self._generation(answer.generation_id, f"{where}.generation_id")
            if draft.target.kind is TargetKind.GROUP:
                related, target = other.group_id == facts.group_id, "a request of this group"
            else:
                related, target = other.input_digest == facts.input_digest, "the target's prompt"
            if not related:
                raise UnrelatedAnswers(f"{where}.generation_id", answer.generation_id, target)
        if isinstance(draft.value, Preference) and not draft.value.tie:
            chosen, rejected = map(self._text_of, draft.answers)
            if chosen == rejected:
                raise InvalidFieldError(
                    "feedback.preference.rejected", "reads the same as the chosen answer"
                )

    def _text_of(self, answer: Answer) -> str:
        """As JSON."""
        if answer.generation_id:
            return self._completions[answer.generation_id]
        return to_json(answer.text)

    def _to_supersede(self, item: _Item) -> Row:
        draft = item.draft
        old = self._by_id.get(draft.supersedes)
        if old is None:
            raise UnknownFeedback(draft.supersedes)
        if (old["author"], old["source"]) != (draft.author, draft.source.value):
            raise CannotSupersede(old["id"], "was given by another author or source")
        target = (draft.target.kind.value, item.target_id)
        if (old["target_kind"], old["target_id"]) != target:
            raise CannotSupersede(old["id"], "is about another target")
        if old["superseded_by"]:
            raise CannotSupersede(
                old["id"], f'is superseded by "{old["superseded_by"]}" already: name that one'
            )
        return old

    def _accept(self, item: _Item, facts: _Facts, old: Row | None) -> Feedback:
        draft = item.draft
        feedback = Feedback(
            id=self._new_id(),
            target=draft.target,
            value=draft.value,
            source=draft.source,
            author=draft.author,
            comment=draft.comment,
            supersedes=draft.supersedes,
            superseded_by="",
            task=facts.task,
            group_id=facts.group_id,
            episode_id=facts.episode_id,
            create_time_ns=self._now_ns,
        )
        row = feedback_row(feedback, draft, item.target_id, item.statement)
        if old is not None:
            self._supersede(old, feedback.id)
        self._accepted[feedback.id] = row
        self._by_id[feedback.id] = self._by_statement[item.statement] = row
        if draft.request_id:
            self._by_request[draft.request_id] = row
        about = {answer.generation_id for answer in draft.answers if answer.generation_id}
        if draft.target.kind is TargetKind.GENERATION:
            about.add(draft.target.id)
        self._links += [{"generation_id": g, "feedback_id": feedback.id} for g in sorted(about)]
        return feedback

    def _supersede(self, old: Row, feedback_id: str) -> None:
        old["superseded_by"] = feedback_id
        said = self._by_statement.get(old["statement"])
        if said is not None and said["id"] == old["id"]:
            del self._by_statement[old["statement"]]
        if old["id"] not in self._accepted:
            self._superseded[old["id"]] = feedback_id


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


def _prompt_facts(prompt: InlinePrompt | None) -> _Facts:
    if prompt is None:
        raise TypeError("a prompt is wanted")
    source = digest(to_json(input_json(prompt.input)))
    return _Facts("", prompt.episode_id, prompt.task, source, 0)


def _answers(draft: Draft) -> list[tuple[Answer, str]]:
    """The answers that a draft compares, with their fields."""
    match draft.value:
        case Preference(chosen, rejected):
            field_of = "feedback.preference"
            return [(chosen, f"{field_of}.chosen"), (rejected, f"{field_of}.rejected")]
        case Ranking(ranks):
            return [
                (answer, f"feedback.ranking.ranks[{rank}].answers[{place}]")
                for rank, answers in enumerate(ranks)
                for place, answer in enumerate(answers)
            ]
        case _:
            return []
