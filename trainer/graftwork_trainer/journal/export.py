"""What a training job would read of the journal: examples, as lines of JSON."""

from collections.abc import Collection, Iterator

from graftwork.status import InvalidFieldError
from graftwork.v1 import feedback_service_pb2 as pb
from graftwork_adapters.selector import parse_name

from graftwork_trainer.datasets.examples import FORMATS
from graftwork_trainer.datasets.extraction import examples
from graftwork_trainer.datasets.judged import Judged
from graftwork_trainer.datasets.scrub import scrub_example
from graftwork_trainer.journal.filters import origins_of, sources_of, times_of
from graftwork_trainer.journal.journal import Journal
from graftwork_trainer.journal.messages import feedback_message, generation_message
from graftwork_trainer.journal.records import (
    Feedback,
    FeedbackFilter,
    Generation,
    Origin,
    TargetKind,
)


def export(journal: Journal, selection: pb.ExampleSelection, *, scrub: bool) -> Iterator[bytes]:
    """Each example that the selection takes, as its line.

    Raises InvalidFieldError at once where the selection is not valid.
    """
    if selection.format not in FORMATS:
        raise InvalidFieldError(
            "selection.format", f"must be one of {', '.join(FORMATS)}; got {selection.format!r}"
        )
    for index, task in enumerate(selection.tasks):
        parse_name(task, field=f"selection.tasks[{index}]")
    after, before = times_of(selection)
    wanted = FeedbackFilter(
        tasks=tuple(selection.tasks),
        sources=sources_of("selection.sources", selection.sources),
        after_ns=after,
        before_ns=before,
    )
    origins = origins_of("selection.origins", selection.origins) or (Origin.USER,)
    threshold = selection.reward_threshold if selection.HasField("reward_threshold") else None
    return _lines(
        judged(journal, wanted, origins), selection.format, reward_threshold=threshold, scrub=scrub
    )


def judged(
    journal: Journal, wanted: FeedbackFilter, origins: Collection[Origin]
) -> Iterator[Judged]:
    """Feedback, oldest first, with the generations of these origins that it is about and names.
    Feedback on inline prompts is always among it."""
    for batch in journal.feedback_batches(wanted):
        yield from _with_generations(journal, batch, origins)


def _lines(
    source: Iterator[Judged], format_name: str, *, reward_threshold: float | None, scrub: bool
) -> Iterator[bytes]:
    for example in examples(source, format_name, reward_threshold=reward_threshold):
        shown = scrub_example(example) if scrub else example
        if shown is not None:
            yield shown.to_line()


def _with_generations(
    journal: Journal, batch: Collection[Feedback], origins: Collection[Origin]
) -> Iterator[Judged]:
    targets = {
        kind: {feedback.target.id for feedback in batch if feedback.target.kind is kind}
        for kind in TargetKind
    }
    named = {answer.generation_id for feedback in batch for answer in feedback.answers} - {""}
    by_id = journal.generations(targets[TargetKind.GENERATION] | named)
    members: dict[tuple[TargetKind, str], list[Generation]] = {}
    for generation in journal.generations_of_groups(targets[TargetKind.GROUP]):
        members.setdefault((TargetKind.GROUP, generation.group_id), []).append(generation)
    for generation in journal.generations_of_episodes(targets[TargetKind.EPISODE]):
        members.setdefault((TargetKind.EPISODE, generation.episode_id), []).append(generation)
    for feedback in batch:
        about = list(members.get((feedback.target.kind, feedback.target.id), ()))
        ids = [feedback.target.id, *(answer.generation_id for answer in feedback.answers)]
        about += [by_id[one] for one in dict.fromkeys(ids) if one in by_id]
        kept = {one.id: one for one in about if one.origin in origins}
        if kept or feedback.target.kind is TargetKind.PROMPT:
            yield feedback_message(feedback), [generation_message(g) for g in kept.values()]
