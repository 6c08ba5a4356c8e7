"""Notes what versions were trained on, so that a deletion from the journal names them."""

from pathlib import Path

from graftwork_trainer.datasets.snapshot import open_snapshot
from graftwork_trainer.journal.journal import Journal


class TrainingLinks:
    """Fits `supervisor.Links`."""

    def __init__(self, journal: Journal, snapshots: Path) -> None:
        self._journal = journal
        self._snapshots = snapshots

    def record(self, version: str, digest: str) -> None:
        """Durable when it returns; the same again changes nothing. Raises WireError."""
        snapshot = open_snapshot(self._snapshots, digest)
        items: set[str] = set()
        for example in snapshot.read("train"):
            items.update(example.generation_ids, example.feedback_ids)
        self._journal.record_training(version, items).result()
