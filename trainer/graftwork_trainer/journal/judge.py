"""Decides on submitted feedback against what the journal holds, many items at once.

Runs inside the writer's transaction: what it reads cannot change before its verdicts are written.
Everything that a batch needs is read in a handful of queries, so that the cost of an item is that
of a few dictionary look-ups.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

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
from graftwork_trainer.journal.evidence import Evidence, Facts, Item
from graftwork_trainer.journal.records import (
    Answer,
    Draft,
    Feedback,
    InlinePrompt,
    Label,
    Preference,
    Ranking,
    TargetKind,
)
from graftwork_trainer.journal.rows import (
    Row,
    digest,
    feedback_row,
    input_json,
    to_feedback,
    to_json,
    value_json,
)

Outcome = Feedback | WireError

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
        items = [Item.of(draft) for draft in drafts]
        self._known = Evidence(self._connection, items)
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

    def _decide(self, item: Item) -> Feedback:
        draft = item.draft
        repeated = self._known.by_request.get(draft.request_id) if draft.request_id else None
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
        said = self._known.by_statement.get(item.statement)
        if said is not None and (old is None or said["id"] != old["id"]):
            same = said["value"] == to_json(value_json(draft.value))
            raise FeedbackExists(said["id"], draft.kind, same=same)
        return self._accept(item, facts, old)

    def _check_target(self, draft: Draft) -> Facts:
        target = draft.target
        match target.kind:
            case TargetKind.GENERATION:
                return self._generation(target.id, "feedback.generation_id")
            case TargetKind.GROUP:
                found, where = self._known.groups.get(target.id), "feedback.group_id"
            case TargetKind.EPISODE:
                found, where = self._known.episodes.get(target.id), "feedback.episode_id"
            case _:
                return _prompt_facts(target.prompt)
        if found is None:
            if target.kind is TargetKind.GROUP:
                self._raise_if_expired(self._issued_ns(target.id), target.id, where)
            raise UnknownTarget(target.kind, target.id, field=where)
        self._raise_if_expired(found.create_time_ns, target.id, where)
        return found

    def _generation(self, generation_id: str, where: str) -> Facts:
        found = self._known.generations.get(generation_id)
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

    def _check_answers(self, draft: Draft, facts: Facts) -> None:
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
            return self._known.completions[answer.generation_id]
        return to_json(answer.text)

    def _to_supersede(self, item: Item) -> Row:
        draft = item.draft
        old = self._known.by_id.get(draft.supersedes)
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

    def _accept(self, item: Item, facts: Facts, old: Row | None) -> Feedback:
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
        self._known.by_id[feedback.id] = self._known.by_statement[item.statement] = row
        if draft.request_id:
            self._known.by_request[draft.request_id] = row
        about = {answer.generation_id for answer in draft.answers if answer.generation_id}
        if draft.target.kind is TargetKind.GENERATION:
            about.add(draft.target.id)
        self._links += [{"generation_id": g, "feedback_id": feedback.id} for g in sorted(about)]
        return feedback

    def _supersede(self, old: Row, feedback_id: str) -> None:
        old["superseded_by"] = feedback_id
        said = self._known.by_statement.get(old["statement"])
        if said is not None and said["id"] == old["id"]:
            del self._known.by_statement[old["statement"]]
        if old["id"] not in self._accepted:
            self._superseded[old["id"]] = feedback_id


def _prompt_facts(prompt: InlinePrompt | None) -> Facts:
    if prompt is None:
        raise TypeError("a prompt is wanted")
    source = digest(to_json(input_json(prompt.input)))
    return Facts("", prompt.episode_id, prompt.task, source, 0)


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
