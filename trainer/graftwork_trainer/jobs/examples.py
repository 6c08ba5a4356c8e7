"""What the journal and the snapshots hold for jobs."""

from collections.abc import Callable, Mapping

from graftwork.v1 import feedback_service_pb2 as pb

from graftwork_trainer.journal.export import export
from graftwork_trainer.journal.filters import sources_of, times_of
from graftwork_trainer.journal.journal import Journal
from graftwork_trainer.journal.records import FeedbackFilter, Kind

# What may become an example of each format; `datasets/extraction.py` makes them.
KINDS: Mapping[str, tuple[Kind, ...]] = {
    "sft": (Kind.DEMONSTRATION, Kind.CORRECTION, Kind.LABEL),
    "classification": (Kind.LABEL,),
    "preference": (Kind.CORRECTION, Kind.PREFERENCE, Kind.RANKING, Kind.THUMBS),
    "reward": (Kind.CORRECTION, Kind.PREFERENCE, Kind.RANKING, Kind.THUMBS, Kind.REWARD),
    "unpaired": (Kind.PREFERENCE, Kind.RANKING, Kind.THUMBS, Kind.REWARD),
}


class JournalExamples:
    """Fits `creation.Examples`. `check_snapshot` raises WireError for an unknown digest."""

    def __init__(self, journal: Journal, check_snapshot: Callable[[str], object]) -> None:
        self._journal = journal
        self._check_snapshot = check_snapshot

    def takes_any(self, selection: pb.ExampleSelection) -> bool:
        return next(export(self._journal, selection, scrub=False), None) is not None

    def count_feedback(self, selection: pb.ExampleSelection) -> int:
        after, before = times_of(selection)
        kinds = KINDS[selection.format]
        if selection.format == "unpaired" and not selection.HasField("reward_threshold"):
            kinds = tuple(kind for kind in kinds if kind is not Kind.REWARD)
        return self._journal.count_feedback(
            FeedbackFilter(
                tasks=tuple(selection.tasks),
                kinds=kinds,
                sources=sources_of("spec.dataset.selection.sources", selection.sources),
                after_ns=after,
                before_ns=before,
            )
        )

    def check_snapshot(self, digest: str) -> None:
        self._check_snapshot(digest)
