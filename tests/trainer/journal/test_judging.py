"""What the journal takes and refuses."""

from collections.abc import Callable

import pytest
from graftwork.status import InvalidFieldError, WireError
from graftwork.v1 import feedback_service_pb2 as pb
from graftwork.v1 import generation_service_pb2 as generation_pb
from graftwork_adapters.errors import RequestIdReused
from graftwork_trainer.journal.errors import (
    CannotSupersede,
    FeedbackExists,
    GenerationExpired,
    LabelNotInSet,
    UnknownFeedback,
    UnknownTarget,
    UnrelatedAnswers,
)
from graftwork_trainer.journal.journal import Journal
from graftwork_trainer.journal.judge import Rules
from graftwork_trainer.journal.records import Draft, Feedback, FeedbackFilter

from tests.trainer.journal.helpers import Clock, Ids, Observer, draft, generation, prompt

REQUEST = "0b8c1f0e-5f0f-4a57-9a53-6f1b3c0c5f11"


def submit(journal: Journal, one: Draft) -> Feedback:
    (outcome,) = journal.submit([one]).result()
    if isinstance(outcome, WireError):
        raise outcome
    return outcome


def texts(chosen: str, rejected: str, **values) -> pb.Preference:
    return pb.Preference(chosen=pb.Answer(text=chosen), rejected=pb.Answer(text=rejected), **values)


def between(chosen: str, rejected: str, **values) -> pb.Preference:
    return pb.Preference(
        chosen=pb.Answer(generation_id=chosen),
        rejected=pb.Answer(generation_id=rejected),
        **values,
    )


def test_feedback_belongs_to_what_it_is_about(journal: Journal, ids: Ids, clock: Clock) -> None:
    one = generation(ids, clock, task="talk", episode_id="e")
    journal.log(one)
    on_it = submit(journal, draft(generation_id=one.id, thumbs=1))
    on_group = submit(journal, draft(group_id=one.group_id, reward=0.5))
    on_episode = submit(journal, draft(episode_id="e", label="good"))
    for feedback in (on_it, on_group, on_episode):
        assert (feedback.task, feedback.episode_id) == ("talk", "e")
        assert feedback.create_time_ns == clock()
    assert (on_it.group_id, on_group.group_id, on_episode.group_id) == (
        one.group_id,
        one.group_id,
        "",
    )
    on_prompt = submit(journal, draft(prompt=prompt(task="x", episode_id="f"), label="l"))
    assert (on_prompt.task, on_prompt.episode_id) == ("x", "f")


def test_an_episode_of_several_tasks_has_none(journal: Journal, ids: Ids, clock: Clock) -> None:
    for task in ("a", "b"):
        journal.log(generation(ids, clock, task=task, episode_id="e"))
    assert submit(journal, draft(episode_id="e", thumbs=2)).task == ""


@pytest.mark.parametrize("target", ["generation_id", "group_id", "episode_id"])
def test_unknown_targets(journal: Journal, ids: Ids, target: str) -> None:
    with pytest.raises(UnknownTarget) as caught:
        submit(journal, draft(**{target: ids.new(), "thumbs": 1}))
    assert caught.value.field == f"feedback.{target}"


def test_an_expired_generation_says_so(journal: Journal, ids: Ids, clock: Clock) -> None:
    one = generation(ids, clock)
    journal.log(one)
    clock.advance(days=31)
    for _ in range(2):  # before and after it is deleted
        for target in ({"generation_id": one.id}, {"group_id": one.group_id}):
            with pytest.raises(GenerationExpired, match="older than the 30 days"):
                submit(journal, draft(**target, thumbs=1))
        journal.expire()
    with pytest.raises(GenerationExpired):
        submit(
            journal,
            draft(
                prompt=prompt(),
                preference=pb.Preference(
                    chosen=pb.Answer(generation_id=one.id), rejected=pb.Answer(text="b")
                ),
            ),
        )


def test_without_a_retention_nothing_expires(
    open_journal: Callable[..., Journal], ids: Ids, clock: Clock
) -> None:
    journal = open_journal(Rules(retention_days=None))
    one = generation(ids, clock)
    journal.log(one)
    clock.advance(days=10_000)
    assert submit(journal, draft(generation_id=one.id, thumbs=1))
    with pytest.raises(UnknownTarget):
        submit(journal, draft(generation_id=generation(ids, clock).id, thumbs=1))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"thumbs": 1}, {"thumbs": 2}),
        ({"reward": 1.0}, {"reward": 0.5}),
        ({"label": "a"}, {"label": "b"}),
        ({"correction": "a"}, {"correction": "b"}),
        ({"demonstration": "a"}, {"demonstration": "a"}),
        ({"remark": "a"}, {"remark": "a"}),
        ({"preference": texts("a", "b")}, {"preference": texts("b", "a")}),
        ({"preference": texts("a", "b")}, {"preference": texts("a", "b", tie=True)}),
    ],
)
def test_one_author_says_one_thing(
    journal: Journal, ids: Ids, clock: Clock, first: dict, second: dict
) -> None:
    one = generation(ids, clock)
    journal.log(one)
    said = submit(journal, draft(generation_id=one.id, author="ada", **first))
    with pytest.raises(FeedbackExists, match=said.id) as caught:
        submit(journal, draft(generation_id=one.id, author="ada", **second))
    assert caught.value.metadata == {"feedback": said.id}
    assert ("the same" in str(caught.value)) is (first == second)
    submit(journal, draft(generation_id=one.id, author="bob", **second))
    submit(journal, draft(generation_id=one.id, author="ada", source=2, **second))
    submit(journal, draft(generation_id=one.id, author="ada", supersedes=said.id, **second))


def test_more_can_be_said_of_one_thing(journal: Journal, ids: Ids, clock: Clock) -> None:
    one = generation(ids, clock)
    journal.log(one)
    values = [
        {"thumbs": 2},
        {"correction": "c"},
        {"remark": "a"},
        {"remark": "b"},
        {"demonstration": "a"},
        {"demonstration": "b"},
        {"preference": texts("a", "b")},
        {"preference": texts("a", "c")},
    ]
    outcomes = journal.submit([draft(generation_id=one.id, **value) for value in values]).result()
    assert all(isinstance(outcome, Feedback) for outcome in outcomes)


def test_a_batch_sees_itself(journal: Journal, observer: Observer) -> None:
    items = [draft(prompt=prompt(), label=label) for label in ("a", "b")]
    first, second = journal.submit(items).result()
    assert isinstance(first, Feedback)
    assert isinstance(second, FeedbackExists)
    journal.settle()
    assert observer.feedback == {"label": 1}


def test_what_supersedes_must_fit(journal: Journal, ids: Ids, clock: Clock) -> None:
    one, other = generation(ids, clock), generation(ids, clock)
    journal.log(one)
    journal.log(other)
    said = submit(journal, draft(generation_id=one.id, thumbs=1, author="ada"))
    for values, why in (
        ({"generation_id": one.id, "author": "bob"}, "another author"),
        ({"generation_id": one.id, "author": "ada", "source": 3}, "another author or source"),
        ({"generation_id": other.id, "author": "ada"}, "another target"),
    ):
        with pytest.raises(CannotSupersede, match=why):
            submit(journal, draft(thumbs=2, supersedes=said.id, **values))
    with pytest.raises(UnknownFeedback):
        submit(journal, draft(generation_id=one.id, thumbs=2, supersedes=ids.new()))
    # Another kind may take its place; what is replaced counts no more.
    new = submit(
        journal, draft(generation_id=one.id, correction="c", author="ada", supersedes=said.id)
    )
    with pytest.raises(CannotSupersede, match=new.id):
        submit(journal, draft(generation_id=one.id, thumbs=2, author="ada", supersedes=said.id))
    listed = journal.list_feedback(FeedbackFilter(), page_size=10).items
    assert [feedback.id for feedback in listed] == [new.id]
    with_old = journal.list_feedback(FeedbackFilter(include_superseded=True), page_size=10).items
    assert [feedback.superseded_by for feedback in with_old] == ["", new.id]


def test_a_repeated_request_is_taken_once(journal: Journal, observer: Observer) -> None:
    one = draft(REQUEST, prompt=prompt(), label="a")
    first, second = journal.submit([one, one]).result()
    third = submit(journal, one)
    assert first == second == third
    with pytest.raises(RequestIdReused):
        submit(journal, draft(REQUEST, prompt=prompt(), label="b"))
    journal.settle()
    assert observer.feedback == {"label": 1}


def test_labels_of_a_set(open_journal: Callable[..., Journal]) -> None:
    journal = open_journal(Rules(labels={"spam": frozenset({"spam", "ham"})}))
    submit(journal, draft(prompt=prompt(task="spam"), label="ham"))
    submit(journal, draft(prompt=prompt(task="other"), label="anything"))
    with pytest.raises(LabelNotInSet, match=r'"eggs" is none of .* "ham", "spam"'):
        submit(journal, draft(prompt=prompt("q", task="spam"), label="eggs"))


def test_answers_of_a_group(journal: Journal, ids: Ids, clock: Clock) -> None:
    group = ids.new()
    one, two = (generation(ids, clock, group_id=group, completion=text) for text in "ab")
    alien = generation(ids, clock)
    for made in (one, two, alien):
        journal.log(made)
    submit(journal, draft(group_id=group, preference=between(one.id, two.id)))
    with pytest.raises(UnrelatedAnswers) as caught:
        submit(journal, draft(group_id=group, preference=between(one.id, alien.id)))
    assert caught.value.field == "feedback.preference.rejected.generation_id"
    ranks = [pb.Ranking.Rank(answers=[pb.Answer(generation_id=g.id)]) for g in (one, alien)]
    with pytest.raises(UnrelatedAnswers) as caught:
        submit(journal, draft(group_id=group, ranking=pb.Ranking(ranks=ranks)))
    assert caught.value.field == "feedback.ranking.ranks[1].answers[0].generation_id"


def test_answers_to_one_prompt_by_two_adapters(journal: Journal, ids: Ids, clock: Clock) -> None:
    conversation = generation_pb.Conversation(
        messages=[generation_pb.Message(role="user", content="hi")]
    )
    one, two = (generation(ids, clock, conversation=conversation, completion=text) for text in "ab")
    journal.log(one)
    journal.log(two)
    submit(journal, draft(generation_id=one.id, preference=between(two.id, one.id)))
    inline = pb.InlinePrompt(conversation=conversation)
    submit(journal, draft(prompt=inline, preference=between(two.id, one.id)))
    with pytest.raises(UnrelatedAnswers):
        submit(journal, draft(prompt=prompt("other"), preference=between(two.id, one.id)))


def test_answers_that_read_the_same(journal: Journal, ids: Ids, clock: Clock) -> None:
    group = ids.new()
    one, two = (generation(ids, clock, group_id=group, completion="same") for _ in "ab")
    journal.log(one)
    journal.log(two)
    with pytest.raises(InvalidFieldError, match="reads the same as the chosen answer"):
        submit(journal, draft(group_id=group, preference=between(one.id, two.id)))
    mixed = pb.Preference(chosen=pb.Answer(text="same"), rejected=pb.Answer(generation_id=one.id))
    with pytest.raises(InvalidFieldError, match="reads the same"):
        submit(journal, draft(generation_id=one.id, preference=mixed))
    submit(journal, draft(group_id=group, preference=between(one.id, two.id, tie=True)))
