"""What is deleted from the journal is gone from data sets, too."""

from pathlib import Path

import pytest
from graftwork.v1 import feedback_service_pb2 as pb
from graftwork_trainer.datasets import redaction
from graftwork_trainer.datasets.examples import Example, parse
from graftwork_trainer.datasets.redaction import Redactor
from graftwork_trainer.datasets.settings import DatasetSettings
from graftwork_trainer.datasets.snapshot import SPLITS, Snapshot, build, open_snapshot
from graftwork_trainer.errors import DamagedSnapshot

from tests.trainer.datasets.feedback import example

SETTINGS = DatasetSettings(selection=pb.ExampleSelection(format="sft"), augmentation=1)


def made(number: int) -> Example:
    value = example(number).to_json()
    return parse({**value, "generation_ids": [f"g{number}"], "feedback_ids": [f"f{number}"]})


EXAMPLES = [made(number) for number in range(100)]


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    return build([one.to_json() for one in EXAMPLES], SETTINGS, tmp_path)


def answers(root: Path) -> set[str]:
    """Every answer that is anywhere on the disk."""
    texts = [path.read_text() for path in root.rglob("*") if path.is_file()]
    return {e.completion for e in EXAMPLES if any(f'"{e.completion}"' in text for text in texts)}


def redactor(root: Path, *deleted: str) -> Redactor:
    return Redactor(root, lambda: deleted)


def one_of(snapshot: Snapshot, split: str) -> Example:
    return next(iter(snapshot.read(split)))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("what", ["generation_ids", "feedback_ids"])
def test_no_file_keeps_what_was_deleted(snapshot: Snapshot, tmp_path: Path, split: str, what: str):
    gone = one_of(snapshot, split)
    assert answers(tmp_path) == {e.completion for e in EXAMPLES}
    redactor(tmp_path).redact(getattr(gone, what))
    assert answers(tmp_path) == {e.completion for e in EXAMPLES} - {gone.completion}
    left = open_snapshot(tmp_path, snapshot.digest)
    copies = 2 if split == "train" else 1
    assert left.count(split) == snapshot.count(split) - copies
    assert left.count(split) == len(list(left.read(split)))
    assert left.digest != snapshot.digest
    assert left.manifest["redacted"]["from"] == snapshot.digest
    assert left.manifest["redacted"][split] == copies
    assert open_snapshot(tmp_path, left.digest) == left
    again = build([one.to_json() for one in EXAMPLES], SETTINGS, tmp_path / "elsewhere")
    assert again.digest == snapshot.digest, "what is deleted is all that changes"


def test_a_snapshot_that_holds_nothing_of_it_stays(snapshot: Snapshot, tmp_path: Path):
    redactor(tmp_path).redact(["g1000", "f1000"])
    assert open_snapshot(tmp_path, snapshot.digest) == snapshot
    assert snapshot.folder.is_dir()


def test_deletions_follow_each_other(snapshot: Snapshot, tmp_path: Path):
    for number in (3, 4):
        redactor(tmp_path).redact([f"g{number}"])
    assert answers(tmp_path) == {e.completion for e in EXAMPLES} - {"answer 3", "answer 4"}
    left = open_snapshot(tmp_path, snapshot.digest)
    assert sum(map(left.count, SPLITS)) < sum(map(snapshot.count, SPLITS))


class Killed(BaseException):
    """The process ends between two of its writes."""


@pytest.mark.parametrize("point", ["write_file", "new_folder", "shutil.rmtree"])
def test_what_a_kill_cut_off_is_done_at_the_next_start(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
):
    def kill(*args: object, **kwargs: object) -> None:
        raise Killed

    monkeypatch.setattr(f"{redaction.__name__}.{point}", kill)
    gone = one_of(snapshot, "train")
    with pytest.raises(Killed):
        redactor(tmp_path).redact(gone.generation_ids)
    monkeypatch.undo()
    open_snapshot(tmp_path, snapshot.digest)  # the one or the other is there
    redactor(tmp_path, *gone.generation_ids).catch_up()
    assert gone.completion not in answers(tmp_path)
    assert open_snapshot(tmp_path, snapshot.digest).manifest["redacted"]["from"] == snapshot.digest


def test_a_snapshot_that_was_written_after_the_deletion_is_caught_up(
    snapshot: Snapshot, tmp_path: Path
):
    gone, held = one_of(snapshot, "train"), one_of(snapshot, "golden")
    redactor(tmp_path, *gone.feedback_ids, *held.generation_ids).catch_up_snapshot(snapshot.digest)
    expected = {e.completion for e in EXAMPLES} - {gone.completion, held.completion}
    assert answers(tmp_path) == expected


def test_a_damaged_snapshot_is_told(snapshot: Snapshot, tmp_path: Path):
    with (snapshot.folder / "validation.jsonl").open("a") as file:
        file.write('{"id": "x"}\n')
    with pytest.raises(DamagedSnapshot, match=r"validation.jsonl was changed"):
        redactor(tmp_path).redact(one_of(snapshot, "train").generation_ids)
