"""Turns the filters of requests into the journal's, or refuses them by the field at fault."""

from collections.abc import Sequence

from graftwork.status import InvalidFieldError
from graftwork.v1 import feedback_service_pb2 as pb
from graftwork.v1 import generation_service_pb2 as generation_pb
from graftwork_adapters.selector import parse_selector

from graftwork_trainer.journal.messages import SOURCES
from graftwork_trainer.journal.records import FeedbackFilter, GenerationFilter, Kind, Origin, Source
from graftwork_trainer.journal.rows import ORIGINS

MAX_IDS = 1000


def feedback_filter(sent: pb.FeedbackFilter) -> FeedbackFilter:
    """Raises InvalidFieldError."""
    kinds = []
    for index, name in enumerate(sent.kinds):
        try:
            kinds.append(Kind(name))
        except ValueError:
            known = ", ".join(Kind)
            raise InvalidFieldError(
                f"filter.kinds[{index}]", f"is {name[:40]!r}, and must be one of {known}"
            ) from None
    after, before = times_of(sent)
    return FeedbackFilter(
        generation_id=_plain("filter.generation_id", sent.generation_id),
        group_id=_plain("filter.group_id", sent.group_id),
        episode_id=_plain("filter.episode_id", sent.episode_id),
        tasks=(_plain("filter.task", sent.task),) if sent.task else (),
        author=_plain("filter.author", sent.author),
        kinds=tuple(kinds),
        sources=sources_of("filter.sources", sent.sources),
        after_ns=after,
        before_ns=before,
        include_superseded=sent.include_superseded,
    )


def generation_filter(sent: pb.GenerationFilter) -> GenerationFilter:
    """Raises InvalidFieldError."""
    if len(sent.ids) > MAX_IDS:
        raise InvalidFieldError("filter.ids", f"has {len(sent.ids)} entries, and at most {MAX_IDS}")
    adapter, version = _adapter(sent.adapter)
    after, before = times_of(sent)
    return GenerationFilter(
        ids=tuple(_plain(f"filter.ids[{index}]", text) for index, text in enumerate(sent.ids)),
        group_id=_plain("filter.group_id", sent.group_id),
        episode_id=_plain("filter.episode_id", sent.episode_id),
        task=_plain("filter.task", sent.task),
        adapter=adapter,
        version=version,
        origins=origins_of("filter.origins", sent.origins),
        after_ns=after,
        before_ns=before,
        with_feedback=sent.with_feedback,
    )


def _adapter(text: str) -> tuple[str | None, int | None]:
    """An adapter's name and version as a filter has them."""
    if text == "":
        return None, None
    if text == "base":
        return "", None
    selector = parse_selector(text, field="filter.adapter")
    return selector.name, selector.version


def sources_of(field: str, sent: Sequence[pb.FeedbackSource]) -> tuple[Source, ...]:
    """Raises InvalidFieldError."""
    for index, source in enumerate(sent):
        if source not in SOURCES:
            raise InvalidFieldError(f"{field}[{index}]", f"{source} is no source that is known")
    return tuple(SOURCES[source] for source in sent)


def origins_of(field: str, sent: Sequence[generation_pb.Origin]) -> tuple[Origin, ...]:
    """Raises InvalidFieldError."""
    for index, origin in enumerate(sent):
        if origin not in ORIGINS:
            raise InvalidFieldError(f"{field}[{index}]", f"{origin} is no origin that is known")
    return tuple(ORIGINS[origin] for origin in sent)


def times_of(
    sent: pb.FeedbackFilter | pb.GenerationFilter | pb.ExampleSelection,
) -> tuple[int | None, int | None]:
    """After and before, in Unix nanoseconds."""
    after = sent.after.ToNanoseconds() if sent.HasField("after") else None
    before = sent.before.ToNanoseconds() if sent.HasField("before") else None
    return after, before


def _plain(field: str, text: str) -> str:
    if "\0" in text:
        raise InvalidFieldError(field, "has a null character in it")
    return text
