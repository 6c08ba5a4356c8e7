"""Lists, filters, pages and deletion."""

from collections.abc import Callable

import pytest
from graftwork.status import InvalidFieldError
from graftwork.types import Component, Conversation, Document, Message, ServedBy
from graftwork.v1 import feedback_service_pb2 as pb
from graftwork.v1 import generation_service_pb2 as generation_pb
from graftwork_trainer.journal.journal import Journal
from graftwork_trainer.journal.judge import Rules
from graftwork_trainer.journal.messages import generation_message
from graftwork_trainer.journal.records import (
    Deletion,
    FeedbackFilter,
    GenerationFilter,
    Kind,
    Origin,
    Source,
)

from tests.trainer.journal.helpers import Clock, Ids, draft, generation, prompt


def put(journal: Journal, *drafts) -> list[str]:
    outcomes = journal.submit(list(drafts)).result()
    return [outcome.id for outcome in outcomes]


def listed(journal: Journal, **wanted) -> list[str]:
    return [f.id for f in journal.list_feedback(FeedbackFilter(**wanted), page_size=100).items]


def found(journal: Journal, **wanted) -> set[str]:
    journal.settle()
    return {g.id for g in journal.list_generations(GenerationFilter(**wanted), page_size=100).items}


def test_a_generation_comes_back_as_it_was(journal: Journal, ids: Ids, clock: Clock) -> None:
    conversation = generation_pb.Conversation(
        messages=[generation_pb.Message(role="user", content="hi\0🙂")],
        documents=[generation_pb.Document(title="t", text="d")],
    )
    served_by = generation_pb.ServedBy(
        digest="x",
        base_digest="b",
        components=[
            generation_pb.ServedBy.Component(adapter="a", version=1, digest="d", weight=0.5)
        ],
    )
    made = [
        generation(ids, clock, conversation=conversation, served_by=served_by),
        generation(ids, clock, text="plain", completion=""),
        generation(ids, clock, token_ids=generation_pb.TokenIds(ids=[5, 6])),
    ]
    for one in made:
        journal.log(one)
    journal.settle()
    page = journal.list_generations(GenerationFilter(), page_size=10)
    assert [generation_message(one) for one in page.items] == made[::-1]
    first = journal.generations([made[0].id])[made[0].id]
    assert first.input == Conversation((Message("user", "hi\0🙂"),), (Document("d", "t"),))
    assert first.served_by == ServedBy("", 0, "x", "b", (Component("a", 1, "d", 0.5),))
    assert first.completion_logprobs == (-0.5, -1.25, 0)


def test_filters_of_generations(journal: Journal, ids: Ids, clock: Clock) -> None:
    base = generation_pb.ServedBy()
    composed = generation_pb.ServedBy(components=[generation_pb.ServedBy.Component(adapter="a")])
    by_poet = generation(ids, clock, episode_id="e")
    by_old = generation(ids, clock, served_by=generation_pb.ServedBy(adapter="poet", version=1))
    by_base = generation(ids, clock, served_by=base, origin=generation_pb.ORIGIN_EVALUATION)
    by_several = generation(ids, clock, served_by=composed, task="other")
    clock.advance(1)
    late = generation(ids, clock)
    for one in (by_poet, by_old, by_base, by_several, late):
        journal.log(one)
    put(
        journal,
        draft(generation_id=by_old.id, thumbs=1),
        draft(episode_id="e", thumbs=1),
        draft(group_id=late.group_id, thumbs=1),
    )
    assert found(journal, adapter="poet") == {by_poet.id, by_old.id, late.id}
    assert found(journal, adapter="poet", version=1) == {by_old.id}
    assert found(journal, adapter="") == {by_base.id}
    assert found(journal, task="other") == {by_several.id}
    assert found(journal, group_id=late.group_id) == {late.id}
    assert found(journal, episode_id="e") == {by_poet.id}
    assert found(journal, origins=[Origin.EVALUATION]) == {by_base.id}
    assert found(journal, ids=[late.id, "nothing"]) == {late.id}
    assert found(journal, after_ns=clock()) == {late.id}
    assert late.id not in found(journal, before_ns=clock())
    assert found(journal, with_feedback=True) == {by_poet.id, by_old.id, late.id}


def test_filters_of_feedback(journal: Journal, ids: Ids, clock: Clock) -> None:
    group = ids.new()
    one, two = (generation(ids, clock, group_id=group, episode_id="e", completion=c) for c in "ab")
    journal.log(one)
    journal.log(two)
    comparison = pb.Preference(
        chosen=pb.Answer(generation_id=one.id), rejected=pb.Answer(generation_id=two.id)
    )
    thumbs, preference = put(
        journal,
        draft(generation_id=one.id, thumbs=1, author="ada"),
        draft(group_id=group, preference=comparison, source=2),
    )
    clock.advance(1)
    (label,) = put(journal, draft(prompt=prompt(task="t", episode_id="f"), label="l"))
    assert listed(journal) == [label, preference, thumbs]
    assert listed(journal, generation_id=one.id) == [preference, thumbs]
    assert listed(journal, generation_id=two.id) == [preference]
    assert listed(journal, group_id=group) == [preference, thumbs]
    assert listed(journal, episode_id="e") == [preference, thumbs]
    assert listed(journal, episode_id="f") == [label]
    assert listed(journal, tasks=["t"]) == [label]
    assert listed(journal, author="ada") == [thumbs]
    assert listed(journal, kinds=[Kind.LABEL, Kind.THUMBS]) == [label, thumbs]
    assert listed(journal, sources=[Source.MODEL]) == [preference]
    assert listed(journal, after_ns=clock()) == [label]
    assert listed(journal, before_ns=clock()) == [preference, thumbs]
    assert journal.count_feedback(FeedbackFilter(tasks=["talk"])) == 2


def test_pages_go_on_where_they_ended(journal: Journal) -> None:
    ids = put(journal, *(draft(prompt=prompt(str(number)), label="l") for number in range(7)))
    seen, token = [], ""
    while True:
        page = journal.list_feedback(FeedbackFilter(), page_size=3, page_token=token)
        seen += [feedback.id for feedback in page.items]
        put(journal, draft(prompt=prompt(f"later {len(seen)}"), label="l"))
        token = page.next_page_token
        if not token:
            break
    assert seen == ids[::-1]


def test_a_token_is_for_its_list_and_filter_only(journal: Journal, ids: Ids, clock: Clock) -> None:
    put(journal, *(draft(prompt=prompt(str(number)), label="l") for number in range(3)))
    token = journal.list_feedback(FeedbackFilter(), page_size=1).next_page_token
    for bad in ("nonsense", token + "x", token[:-4]):
        with pytest.raises(InvalidFieldError, match="page_token"):
            journal.list_feedback(FeedbackFilter(), page_size=1, page_token=bad)
    with pytest.raises(InvalidFieldError, match="for this filter"):
        journal.list_feedback(FeedbackFilter(author="a"), page_size=1, page_token=token)
    with pytest.raises(InvalidFieldError, match="page_token"):
        journal.list_generations(GenerationFilter(), page_size=1, page_token=token)


def test_batches_are_in_order(journal: Journal) -> None:
    ids = put(journal, *(draft(prompt=prompt(str(number)), label="l") for number in range(1200)))
    batches = list(journal.feedback_batches(FeedbackFilter()))
    assert [one.id for batch in batches for one in batch] == ids
    assert len(batches) == 3


def figures(deleted: Deletion) -> tuple[int, int, tuple[str, ...]]:
    return deleted.num_generations, deleted.num_feedback, deleted.trained_versions


def test_deleting_one_answer_takes_comparisons_with_it_along(
    journal: Journal, ids: Ids, clock: Clock
) -> None:
    group = ids.new()
    one, two = (generation(ids, clock, group_id=group, completion=c) for c in "ab")
    journal.log(one)
    journal.log(two)
    comparison = pb.Preference(
        chosen=pb.Answer(generation_id=one.id), rejected=pb.Answer(generation_id=two.id)
    )
    on_two, comparing, on_group = put(
        journal,
        draft(generation_id=two.id, thumbs=1),
        draft(group_id=group, preference=comparison),
        draft(group_id=group, thumbs=1),
    )
    assert figures(journal.delete_ids([one.id]).result()) == (1, 1, ())
    assert listed(journal) == [on_group, on_two]
    assert journal.deleted_items() == {one.id, comparing}
    assert figures(journal.delete_ids([two.id, one.id]).result()) == (1, 2, ())
    assert listed(journal) == []


def test_an_author_takes_everything_along(journal: Journal, ids: Ids, clock: Clock) -> None:
    mine, of_group, of_episode, other = (
        generation(ids, clock, episode_id=episode) for episode in ("", "", "e", "")
    )
    for one in (mine, of_group, of_episode, other):
        journal.log(one)
    put(
        journal,
        draft(generation_id=mine.id, thumbs=1, author="ada"),
        draft(generation_id=mine.id, thumbs=1, author="bob"),
        draft(group_id=of_group.group_id, thumbs=1, author="ada"),
        draft(episode_id="e", thumbs=1, author="ada"),
        draft(prompt=prompt(), label="l", author="ada"),
    )
    (kept,) = put(journal, draft(generation_id=other.id, thumbs=1, author="bob"))
    assert figures(journal.delete_author("ada").result()) == (3, 5, ())
    assert listed(journal) == [kept]
    assert found(journal) == {other.id}


def test_an_episode_goes_with_its_prompts(journal: Journal, ids: Ids, clock: Clock) -> None:
    journal.log(generation(ids, clock, episode_id="e"))
    put(
        journal,
        draft(episode_id="e", remark="r"),
        draft(prompt=prompt(episode_id="e"), label="l"),
        draft(prompt=prompt("q"), label="l"),
    )
    assert figures(journal.delete_episode("e").result()) == (1, 2, ())
    assert len(listed(journal)) == 1


def test_deletion_names_the_versions_trained_on_it(
    journal: Journal, ids: Ids, clock: Clock
) -> None:
    one, other = generation(ids, clock), generation(ids, clock)
    journal.log(one)
    journal.log(other)
    (feedback,) = put(journal, draft(generation_id=one.id, correction="c"))
    for _ in range(2):  # noting it twice is no error
        journal.record_training("poet@3", [one.id, feedback]).result()
    journal.record_training("poet@4", [feedback]).result()
    journal.record_training("poet@5", [other.id]).result()
    clock.advance(days=31)
    assert figures(journal.expire()) == (2, 1, ("poet@3", "poet@4", "poet@5"))
    assert journal.deleted_items() == frozenset(), "what expires does so by itself"
    # By id they are still known.
    assert figures(journal.delete_ids([one.id]).result()) == (0, 0, ("poet@3",))


def test_what_is_old_goes_in_the_background(
    open_journal: Callable[..., Journal], ids: Ids, clock: Clock
) -> None:
    journal = open_journal(Rules(retention_days=30))
    old = generation(ids, clock)
    journal.log(old)
    put(journal, draft(generation_id=old.id, thumbs=1), draft(prompt=prompt(), label="l"))
    clock.advance(days=20)
    new = generation(ids, clock)
    journal.log(new)
    put(journal, draft(generation_id=old.id, correction="c"))
    (kept,) = put(journal, draft(prompt=prompt(), label="l", author="ada"))
    clock.advance(days=11)
    assert figures(journal.expire()) == (1, 2, ())
    assert figures(journal.expire()) == (0, 1, ())
    assert figures(journal.expire()) == (0, 0, ())
    assert listed(journal) == [kept]
    assert found(journal) == {new.id}
