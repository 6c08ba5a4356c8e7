"""A data set under a digest, in a folder that is written once.

    ROOT/snapshots/HEX/train.jsonl        what is trained on
                       validation.jsonl   what the gate looks at: later than what is trained on
                       golden.jsonl       never trained on (golden.py)
                       report.md          for people
                       manifest.json      settings, counts, hashes of the files, and the digest
    ROOT/golden/                          the golden sets of all tasks

The digest is the SHA-256 of the manifest without it. The same examples, in whatever order, and the
same settings give the same digest, as long as the golden sets are the same or not there yet.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork.v1 import feedback_service_pb2
from graftwork_adapters.durable import new_folder

from graftwork_trainer.datasets import (
    cleaning,
    duplicates,
    examples,
    report,
    splitting,
    training_set,
)
from graftwork_trainer.datasets.examples import Example
from graftwork_trainer.datasets.golden import GoldenSets, lines_of
from graftwork_trainer.datasets.settings import DatasetSettings
from graftwork_trainer.datasets.splitting import Splits
from graftwork_trainer.errors import (
    DamagedSnapshot,
    DatasetTooSmall,
    EmptyDataset,
    InvalidExample,
    OneClass,
    UnknownSnapshot,
    disk_full_is_told,
)

MIN_EXAMPLES = 10  # usable ones: fewer cannot be split and say nothing when evaluated
SPLITS = ("train", "validation", "golden")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot whose files match its digest."""

    digest: str  # "sha256:..."
    folder: Path
    manifest: Mapping[str, Any]

    @property
    def settings(self) -> DatasetSettings:
        return DatasetSettings.from_json(self.manifest["settings"])

    def count(self, split: str) -> int:
        """Number of examples in "train", "validation" or "golden"."""
        count: int = self.manifest["files"][f"{split}.jsonl"]["examples"]
        return count

    def labels(self, task: str) -> tuple[str, ...]:
        """All classes of a task, sorted; none where its answers are no classes."""
        return tuple(self.manifest["tasks"][task]["labels"])

    def read(self, split: str) -> Iterator[Example]:
        """The examples of "train", "validation" or "golden"."""
        with (self.folder / f"{split}.jsonl").open("rb") as lines:
            for number, line in enumerate(lines, 1):
                yield examples.parse_line(line, f"{split}.jsonl line {number}")


def build(
    sent: Iterable[Mapping[str, Any]],
    settings: DatasetSettings,
    root: Path,
    *,
    template_hash: str = "",
) -> Snapshot:
    """Makes a snapshot of a stream of examples, decoded from JSON, below `root`.

    `template_hash` names the chat template that the prompts are meant for. One process builds below
    a root at a time. Raises InvalidExample, EmptyDataset, DatasetTooSmall, OneClass,
    InvalidFieldError, DatasetDiskFull.
    """
    received = _in_order(sent, settings.format)
    dropped = Counter[str]()
    golden_sets = GoldenSets(root / "golden")
    golden = golden_sets.of_format(settings.format)
    protected = golden_sets.of_other_formats(settings.format)
    known = {example.id for example in golden}

    usable = cleaning.clean(received, dropped, scrub=settings.scrub)
    usable = cleaning.without_contradictions(usable, dropped)
    usable = [example for example in usable if example.id not in known]
    golden = cleaning.clean(golden, Counter(), scrub=settings.scrub)
    candidates = [*golden, *protected, *usable]
    held = len(golden) + len(protected)
    similar = duplicates.find(candidates, settings.duplicate_similarity, dropped, held=held)
    kept = [candidates[number] for number in similar.kept]
    if len(kept) == held:
        raise EmptyDataset(len(received), dropped)
    if len(kept) - held < MIN_EXAMPLES:
        raise DatasetTooSmall("usable examples", len(kept) - held, MIN_EXAMPLES)
    place = {number: index for index, number in enumerate(similar.kept)}
    splits = splitting.split(
        kept,
        [(place[one], place[other]) for one, other in similar.pairs],
        settings,
        dropped,
        held=held,
        frozen_tasks=golden_sets.tasks(settings.format),
    )
    if not splits.golden and not splits.num_groups:
        raise EmptyDataset(len(received), dropped)
    _check_splits(splits)
    train = [kept[number] for number in splits.train]
    _check_classes(train)
    trained = training_set.training_set(train, settings)
    # Frozen only now, when nothing can be wrong any more but the disk.
    chosen = [kept[number] for number in splits.golden]
    golden_sets.freeze(chosen)

    tasks = {example.task for example in usable}
    content = {
        "train": trained,
        "validation": sorted((kept[number] for number in splits.validation), key=_in_time),
        "golden": sorted([*(e for e in golden if e.task in tasks), *chosen], key=_in_time),
    }
    manifest = {
        "version": 1,
        "settings": settings.to_json(),
        "template_hash": template_hash,
        **report.figures(content, train, received=len(received), dropped=dropped, splits=splits),
    }
    return _write(root, content, manifest)


def open_snapshot(root: Path, digest: str) -> Snapshot:
    """Reads a snapshot and checks all its bytes; one that was redacted since gives the one in its
    place. Raises UnknownSnapshot, DamagedSnapshot."""
    if _DIGEST.fullmatch(digest) is None:
        raise UnknownSnapshot(digest)
    folder = folder_of(root, digest)
    if not folder.is_dir():
        try:
            successor = successor_file(root, digest).read_text()
        except FileNotFoundError:
            raise UnknownSnapshot(digest) from None
        return open_snapshot(root, successor)
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["digest"] != digest or digest_of(manifest) != digest:
            raise DamagedSnapshot(digest, f"{MANIFEST} was changed")
        for name, listed in manifest["files"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != listed["sha256"]:
                raise DamagedSnapshot(digest, f"{name} was changed")
    except FileNotFoundError as error:
        raise DamagedSnapshot(digest, f"{Path(error.filename).name} is missing") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise DamagedSnapshot(digest, f"{MANIFEST} cannot be read") from None
    return Snapshot(digest, folder, manifest)


def rebuild(
    snapshot: Snapshot,
    export: Callable[[feedback_service_pb2.ExampleSelection], Iterable[Mapping[str, Any]]],
    root: Path,
) -> Snapshot:
    """Makes it anew from the examples that its selection gives now. The digest is the same as long
    as they are; a selection without `before` takes later feedback too. Raises as `build`."""
    settings = snapshot.settings
    return build(
        export(settings.selection),
        settings,
        root,
        template_hash=snapshot.manifest["template_hash"],
    )


def _in_order(sent: Iterable[Mapping[str, Any]], format_name: str) -> list[Example]:
    """The examples by time; the same one twice counts once."""
    found: dict[str, Example] = {}
    for number, value in enumerate(sent, 1):
        example = examples.parse(value, f"example {number}")
        if example.format != format_name:
            raise InvalidExample(
                f"example {number}.format",
                f'is "{example.format}", but the settings say {format_name}',
            )
        if found.setdefault(example.id, example) != example:
            raise InvalidExample(f"example {number}.id", f'"{example.id}" names two examples')
    return sorted(found.values(), key=_in_time)


def _in_time(example: Example) -> tuple[Any, str]:
    return example.create_time, example.id


def _check_splits(splits: Splits) -> None:
    if not splits.train or not splits.validation:
        raise DatasetTooSmall(
            "independent groups of examples (that share no prompt, episode or author), one to "
            "train on and one to validate on beside the golden set",
            splits.num_groups,
            2,
        )


def _check_classes(train: list[Example]) -> None:
    """Raises OneClass where a task has classes, but only one of them."""
    classes: dict[str | None, Counter[str]] = {}
    for example in train:
        if label := cleaning.class_of(example):
            # Good and bad answers may come from different tasks.
            task = None if example.format == "unpaired" else example.task
            classes.setdefault(task, Counter())[label] += 1
    for task, labels in classes.items():
        if len(labels) == 1:
            raise OneClass(task, *labels.most_common(1)[0])


def _write(root: Path, content: Mapping[str, list[Example]], manifest: dict[str, Any]) -> Snapshot:
    data = {f"{split}.jsonl": lines_of(content[split]) for split in SPLITS}
    data["report.md"] = report.markdown(manifest).encode()
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(d).hexdigest()} for name, d in data.items()
    }
    for split in SPLITS:
        manifest["files"][f"{split}.jsonl"]["examples"] = len(content[split])
    digest = digest_of(manifest)
    manifest["digest"] = digest
    folder = folder_of(root, digest)
    text = json.dumps(manifest, ensure_ascii=False, indent=1, sort_keys=True)
    with disk_full_is_told(), new_folder(folder) as draft:
        for name, written in {**data, MANIFEST: text.encode() + b"\n"}.items():
            (draft / name).write_bytes(written)
    return open_snapshot(root, digest)


def folder_of(root: Path, digest: str) -> Path:
    return root / "snapshots" / digest.removeprefix("sha256:")


def successor_file(root: Path, digest: str) -> Path:
    """Where the digest of the snapshot is that has taken the place of another (redaction.py)."""
    return root / "snapshots" / f"{digest.removeprefix('sha256:')}.redacted"


def digest_of(manifest: Mapping[str, Any]) -> str:
    """Of a manifest, with or without its digest."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    canonical = json.dumps(rest, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"
