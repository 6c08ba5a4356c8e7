"""The golden sets: examples of each task, chosen once, that no adapter is ever trained on.

    ROOT/golden/FORMAT-HEX.jsonl    HEX is the SHA-256 of the task's name

A set is written by the first snapshot that has examples of its task and format, and does not
change after that, whatever feedback comes. It keeps out of training, in every format, what belongs
together with its examples.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from graftwork_adapters.durable import write_file

from graftwork_trainer.datasets import examples
from graftwork_trainer.datasets.examples import Example
from graftwork_trainer.errors import disk_full_is_told


class GoldenSets:
    """The sets in a folder, as they were when it was opened."""

    def __init__(self, folder: Path) -> None:
        """Raises InvalidExample where a file is damaged."""
        self._folder = folder
        self._sets: dict[tuple[str, str], list[Example]] = {}  # by format and task
        for path in sorted(folder.glob("*.jsonl")):
            lines = path.read_bytes().splitlines()
            found = [
                examples.parse_line(line, f"golden/{path.name} line {number}")
                for number, line in enumerate(lines, 1)
            ]
            if found:
                self._sets[found[0].format, found[0].task] = found

    def of_format(self, format_name: str) -> list[Example]:
        return [e for (of, _), found in self._sets.items() if of == format_name for e in found]

    def of_other_formats(self, format_name: str) -> list[Example]:
        return [e for (of, _), found in self._sets.items() if of != format_name for e in found]

    def tasks(self, format_name: str) -> frozenset[str]:
        """That have a set of this format."""
        return frozenset(task for of, task in self._sets if of == format_name)

    def freeze(self, chosen: Sequence[Example]) -> None:
        """Writes the sets of tasks that have none yet; durable when it returns. Raises
        DatasetDiskFull."""
        by_set: dict[tuple[str, str], list[Example]] = {}
        for example in chosen:
            by_set.setdefault((example.format, example.task), []).append(example)
        for (format_name, task), found in by_set.items():
            if (format_name, task) in self._sets:
                raise ValueError(f'task "{task}" has a golden set already')
            name = f"{format_name}-{hashlib.sha256(task.encode()).hexdigest()}.jsonl"
            with disk_full_is_told():
                write_file(self._folder / name, lines_of(found))
            self._sets[format_name, task] = found


def lines_of(found: Iterable[Example]) -> bytes:
    return b"".join(example.to_line() for example in found)
