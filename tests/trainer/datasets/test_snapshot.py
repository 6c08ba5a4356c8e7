import errno
import os
import random
import tempfile
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
from graftwork.status import InvalidFieldError
from graftwork.v1 import feedback_service_pb2 as pb
from graftwork_trainer.datasets.duplicates import find
from graftwork_trainer.datasets.settings import DatasetSettings
from graftwork_trainer.datasets.snapshot import build, open_snapshot, rebuild
from graftwork_trainer.errors import (
    DamagedSnapshot,
    DatasetDiskFull,
    DatasetTooSmall,
    EmptyDataset,
    InvalidExample,
    OneClass,
    UnknownSnapshot,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.datasets.feedback import START, example

SPLITS = ("train", "validation", "golden")


def options(format_name="sft", **fields):
    return DatasetSettings(selection=pb.ExampleSelection(format=format_name), **fields)


def sent(number, **fields):
    return example(number, **fields).to_json()


def labelled(number, completion, **fields):
    return sent(number, format="classification", completion=completion, **fields)


def ids(snapshot, split):
    return {e.id for e in snapshot.read(split)}


HUNDRED = [sent(n) for n in range(100)]
LABELS = [labelled(n, "spam" if n % 5 == 0 else "ham") for n in range(100)]


def test_examples_are_split_by_time(tmp_path):
    late = [sent(n, create_time=(START + timedelta(days=n)).isoformat()) for n in range(100)]
    snapshot = build(late, options(), tmp_path)
    assert [snapshot.count(split) for split in SPLITS] == [85, 10, 5]
    train, validation = list(snapshot.read("train")), list(snapshot.read("validation"))
    assert max(e.create_time for e in train) < min(e.create_time for e in validation)
    assert snapshot.manifest["tasks"]["sums"]["order"] == "time"


def test_examples_that_came_at_once_are_split_by_hash(tmp_path):
    time = START.isoformat()
    snapshot = build([sent(n, create_time=time) for n in range(100)], options(), tmp_path)
    assert snapshot.manifest["tasks"]["sums"]["order"] == "hash"
    assert [snapshot.count(split) for split in SPLITS] == [85, 10, 5]
    assert ids(snapshot, "validation") != {f"e{n:06d}" for n in range(90, 100)}


def test_every_class_is_in_every_split(tmp_path):
    snapshot = build(LABELS, options("classification"), tmp_path)
    assert snapshot.labels("sums") == ("ham", "spam")
    splits = snapshot.manifest["tasks"]["sums"]["splits"]
    assert splits["golden"]["classes"] == {"ham": 4, "spam": 1}
    assert splits["validation"]["classes"] == {"ham": 8, "spam": 2}
    assert splits["train"]["classes"] == {"ham": 68, "spam": 17}


def test_a_snapshot_reads_back(tmp_path):
    snapshot = build(HUNDRED, options(), tmp_path, template_hash="sha256:t")
    again = open_snapshot(tmp_path, snapshot.digest)
    assert again == snapshot
    assert again.manifest["template_hash"] == "sha256:t"
    assert again.settings == options()
    everything = set().union(*(ids(again, split) for split in SPLITS))
    assert everything == {value["id"] for value in HUNDRED}
    assert "| sums | time | all | 85 | 10 | 5 |" in (again.folder / "report.md").read_text()


def test_a_rebuilt_snapshot_has_the_same_digest(tmp_path):
    snapshot = build(HUNDRED, options(), tmp_path)
    again = rebuild(
        snapshot, lambda selection: HUNDRED if selection.format == "sft" else [], tmp_path
    )
    assert again == snapshot


@pytest.mark.parametrize(
    "change", [{"template_hash": "other"}, {"balance": 0.5}, {"examples": HUNDRED[:-1]}]
)
def test_another_content_has_another_digest(tmp_path, change):
    examples, template_hash = change.pop("examples", HUNDRED), change.pop("template_hash", "")
    one = build(HUNDRED, options(), tmp_path)
    other = build(examples, options(**change), tmp_path, template_hash=template_hash)
    assert one.digest != other.digest


@pytest.mark.parametrize("name", ["train.jsonl", "manifest.json", "report.md"])
def test_damage_is_noticed(tmp_path, name):
    snapshot = build(HUNDRED, options(), tmp_path)
    path = snapshot.folder / name
    data = path.read_bytes()
    path.write_bytes(data.replace(b"1", b"2", 1))
    with pytest.raises(DamagedSnapshot):
        open_snapshot(tmp_path, snapshot.digest)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DamagedSnapshot):
        open_snapshot(tmp_path, snapshot.digest)
    path.unlink()
    with pytest.raises(DamagedSnapshot, match="missing"):
        open_snapshot(tmp_path, snapshot.digest)


@pytest.mark.parametrize("digest", ["", "sha256:" + "0" * 64, "../golden", "sha256:../../etc"])
def test_an_unknown_digest_is_an_error(tmp_path, digest):
    with pytest.raises(UnknownSnapshot):
        open_snapshot(tmp_path, digest)


def test_the_golden_set_stays_as_it_was_first(tmp_path):
    first = build(HUNDRED, options(), tmp_path)
    more = [*HUNDRED, *(sent(n) for n in range(100, 300))]
    second = build(more, options(), tmp_path)
    assert list(second.read("golden")) == list(first.read("golden"))
    newer = build([sent(n) for n in range(200, 300)], options(golden_share=0.3), tmp_path)
    assert list(newer.read("golden")) == list(first.read("golden"))


def test_golden_prompts_are_not_trained_on_in_any_format(tmp_path):
    golden = build(HUNDRED, options(), tmp_path).read("golden")
    prompts = {e.prompt for e in golden}
    rewards = [sent(n, id=f"r{n}", format="reward", completion="a", reward=1.0) for n in range(100)]
    other = build(rewards, options("reward"), tmp_path)
    assert other.manifest["dropped"] == {"held_by_golden": 5}
    for split in SPLITS:
        assert prompts.isdisjoint(e.prompt for e in other.read(split))


def test_a_new_task_does_not_change_the_golden_sets_of_others(tmp_path):
    def of_task(task, start):
        numbers = range(start, start + 50)
        return [sent(n, task=task, author=f"author{n % 50}") for n in numbers]

    first = build(of_task("b", 0), options(), tmp_path)
    # Every author has an example of each task, so that golden groups of the new one hold old ones.
    both = [*of_task("a", 100), *of_task("b", 200)]
    second = build(both, options(), tmp_path)
    golden = list(second.read("golden"))
    assert [e for e in golden if e.task == "b"] == list(first.read("golden"))
    assert [e.task for e in golden].count("a") >= 2
    held = second.manifest["dropped"]["held_by_golden"]
    assert held + sum(second.count(s) for s in SPLITS) - first.count("golden") == len(both)
    assert build(both, options(), tmp_path).digest == second.digest


def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DatasetDiskFull):
        build(HUNDRED, options(golden_share=0), tmp_path)
    with pytest.raises(DatasetDiskFull):
        build(HUNDRED, options(), tmp_path)
    monkeypatch.undo()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert build(HUNDRED, options(), tmp_path).count("golden") == 5


def test_an_error_freezes_no_golden_set(tmp_path):
    with pytest.raises(InvalidFieldError):
        build(HUNDRED, options(mixture={"a": 1}), tmp_path)
    assert not (tmp_path / "golden").exists()


def test_an_author_of_all_examples_does_not_keep_them_together(tmp_path):
    snapshot = build([sent(n, author="ann") for n in range(100)], options(), tmp_path)
    assert [snapshot.count(split) for split in SPLITS] == [85, 10, 5]


@pytest.mark.parametrize(
    ("examples", "format_name", "error", "words"),
    [
        ([], "sft", EmptyDataset, "holds no examples"),
        (HUNDRED[:9], "sft", DatasetTooSmall, "9 found, 10 needed"),
        ([sent(n, truncated=True) for n in range(20)], "sft", EmptyDataset, "truncated 20"),
        ([sent(n, episode_id="e") for n in range(50)], "sft", DatasetTooSmall, "1 found, 2 needed"),
        (
            [labelled(n, "ham") for n in range(50)],
            "classification",
            OneClass,
            '43 examples of task "sums" to train on are of the class "ham"',
        ),
        (
            [sent(n, format="unpaired", completion="a", label=True) for n in range(50)],
            "unpaired",
            OneClass,
            'of the class "good"',
        ),
        (HUNDRED, "reward", InvalidExample, 'is "sft"'),
        ([*HUNDRED, sent(0, completion="b")], "sft", InvalidExample, "names two examples"),
    ],
)
def test_what_cannot_be_trained_on_is_an_error(tmp_path, examples, format_name, error, words):
    with pytest.raises(error, match=words):
        build(examples, options(format_name), tmp_path)
    assert not list(tmp_path.glob("*/*"))


def test_rare_classes_are_warned_of(tmp_path):
    warnings = build(LABELS, options("classification"), tmp_path).manifest["warnings"]
    assert 'class "spam" of task "sums" has 2 validation examples (17 to train on): ' in warnings[1]


@st.composite
def journals(draw):
    """Examples with shared episodes, authors, prompts, near duplicates and contradictions."""
    seed, size = draw(st.integers(0, 2**32)), draw(st.integers(25, 90))
    rng = random.Random(seed)
    values = []
    for number in range(size):
        value = labelled(number, rng.choice(["ham", "spam"]), task=rng.choice("ab"))
        twin = rng.randrange(number) if number else 0
        kind = rng.random()
        text = value["prompt"]["messages"][0]["content"]
        if kind < 0.2 and number:
            text = values[twin]["prompt"]["messages"][0]["content"]
        elif kind < 0.4 and number:
            text = values[twin]["prompt"]["messages"][0]["content"] + "!"
        value["prompt"] = {"messages": [{"role": "user", "content": text}]}
        value["author"] = f"author{rng.randrange(size)}" if rng.random() < 0.3 else "regular"
        if rng.random() < 0.2:
            value["episode_id"] = f"episode{rng.randrange(size)}"
        values.append(value)
    return values, rng


def built(examples, root, **fields):
    try:
        return build(examples, options("classification", **fields), root)
    except (DatasetTooSmall, OneClass, EmptyDataset):
        return None


@given(journals())
@settings(max_examples=25)
def test_nothing_leaks_between_splits(journal):
    values, _ = journal
    with tempfile.TemporaryDirectory() as folder:
        half = built(values[: len(values) // 2], Path(folder))
        snapshot = built(values, Path(folder), augmentation=1, balance=0.5)
        if snapshot is None:
            return
        by_split = {split: list(snapshot.read(split)) for split in SPLITS}
        if half is not None:
            assert {e.id for e in half.read("golden")} <= {e.id for e in by_split["golden"]}
    examples = [e for split in by_split.values() for e in split if "~" not in e.id]
    split_of = {e.id: split for split, found in by_split.items() for e in found}
    authors = Counter(value["author"] for value in values)
    for key in ("prompt", "episode_id", "author"):
        seen = {}
        for e in examples:
            value = getattr(e, key)
            if value and not (key == "author" and authors[value] > 0.1 * len(examples)):
                assert seen.setdefault(value, split_of[e.id]) == split_of[e.id]
    similar = find(examples, 0.9, Counter())
    assert len(similar.kept) == len(examples)
    for one, other in similar.pairs:
        assert split_of[examples[one].id] == split_of[examples[other].id]
    assert all("~" not in e.id for split in ("validation", "golden") for e in by_split[split])


@given(journals())
@settings(max_examples=20)
def test_the_digest_does_not_depend_on_the_order(journal):
    values, rng = journal
    shuffled = rng.sample(values, len(values))
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        first = built(values, Path(one))
        elsewhere = built(shuffled, Path(other))
        again = built(shuffled, Path(one))  # with the golden sets there
    digests = {None if made is None else made.digest for made in (first, elsewhere, again)}
    assert len(digests) == 1
