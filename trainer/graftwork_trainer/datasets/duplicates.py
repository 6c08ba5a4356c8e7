"""Finds examples that are the same, or nearly, before they can end up on both sides of a split.

The similarity of two prompts is the Jaccard index of their sets of five-character shingles, in
lower case, white space as one blank. Shingles in more than half of the prompts, as of a common
instruction, say nothing about similarity and are left out. Candidates come from MinHash LSH
(Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3) and are compared exactly.
"""

import zlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graftwork_trainer.datasets.examples import Example
from graftwork_trainer.datasets.prompts import Conversation, Prompt, Text

if TYPE_CHECKING:
    from datasketch import MinHash, MinHashLSH

_SHINGLE = 5
_PERMUTATIONS = 128
_MISSED = 1e-3
# Below so many prompts half of them is no common instruction.
_MIN_PROMPTS = 20


class Similar:
    """Which of a list of examples were kept, and which of those belong together."""

    def __init__(self) -> None:
        self.kept: list[int] = []  # indices into the list
        self.pairs: list[tuple[int, int]] = []  # kept ones with similar prompts, other answers


def find(
    examples: Sequence[Example], similarity: float, dropped: Counter[str], *, held: int = 0
) -> Similar:
    """Goes through the examples in order; one with the prompt and the answer of an earlier one is
    dropped (`duplicate`, or `near_duplicate` where the prompts only come close). Tasks are apart in
    what is dropped, but not in what belongs together. The first `held` are all kept.

    `similarity` is the least Jaccard index of near duplicates; 1 is equality of the prompts.
    """
    found = Similar()
    index = _Index([example.prompt for example in examples], similarity)
    exact: set[Any] = set()
    kept_with: dict[Prompt, list[int]] = {}  # by prompt
    for number, example in enumerate(examples):
        content = (example.task, example.prompt, _answer(example))
        if number >= held and content in exact:
            dropped["duplicate"] += 1
            continue
        same = kept_with.setdefault(example.prompt, [])
        near = [
            other for prompt in index.near(example.prompt) for other in kept_with.get(prompt, ())
        ]
        if number >= held and any(
            (examples[other].task, _answer(examples[other])) == (example.task, content[2])
            for other in near
        ):
            dropped["near_duplicate"] += 1
            continue
        exact.add(content)
        # One link to each distinct prompt is enough to tie all that share it.
        found.pairs += [(other, number) for other in (*near, *same[:1])]
        found.kept.append(number)
        same.append(number)
        index.add(example.prompt)
    return found


def prompt_text(prompt: Prompt) -> str:
    """Its words, without roles; token ids as numbers."""
    if isinstance(prompt, Text):
        return prompt.text
    if isinstance(prompt, Conversation):
        return "\n".join(
            [*(m.content for m in prompt.messages), *(d.text for d in prompt.documents)]
        )
    return " ".join(map(str, prompt.ids))


class _Index:
    """The distinct prompts added so far, by similarity."""

    def __init__(self, prompts: Sequence[Prompt], similarity: float) -> None:
        self._similarity = similarity
        self._shingles: dict[Prompt, frozenset[int]] = {}
        self._hashes: dict[Prompt, MinHash] = {}
        self._added: dict[str, Prompt] = {}  # by name, which sorts as added
        self._known: set[Prompt] = set()
        if similarity >= 1:
            return
        self._shingles = {
            prompt: _shingles(prompt_text(prompt)) for prompt in dict.fromkeys(prompts)
        }
        counts = Counter(shingle for found in self._shingles.values() for shingle in found)
        if len(self._shingles) >= _MIN_PROMPTS:
            half = len(self._shingles) / 2
            common = {shingle for shingle, count in counts.items() if count > half}
            self._shingles = {p: found - common for p, found in self._shingles.items()}
        self._empty, self._lsh = _empty_index(similarity)

    def near(self, prompt: Prompt) -> list[Prompt]:
        """Other prompts at least as similar as asked, in the order they were added."""
        shingles = self._shingles.get(prompt)
        if not shingles:  # nothing of its own: only equality counts
            return []
        names = sorted(self._lsh.query(self._hash(prompt)))
        candidates = [self._added[name] for name in names]
        return [
            other
            for other in candidates
            if other != prompt and _jaccard(shingles, self._shingles[other]) >= self._similarity
        ]

    def add(self, prompt: Prompt) -> None:
        if self._shingles.get(prompt) and prompt not in self._known:
            name = f"{len(self._added):09d}"
            self._lsh.insert(name, self._hash(prompt), check_duplication=False)
            self._added[name] = prompt
            self._known.add(prompt)

    def _hash(self, prompt: Prompt) -> "MinHash":
        if prompt not in self._hashes:
            hashed = self._empty.copy()
            hashed.update_batch(sorted(self._shingles[prompt]))
            self._hashes[prompt] = hashed
        return self._hashes[prompt]


def _empty_index(similarity: float) -> tuple["MinHash", "MinHashLSH"]:
    """The hash of nothing, and an index that holds nothing."""
    # It imports SciPy, and the server, which seldom comes here, need not wait for that to start.
    from datasketch import MinHash, MinHashLSH  # noqa: PLC0415

    empty = MinHash(num_perm=_PERMUTATIONS, seed=1, hashfunc=int)
    return empty, MinHashLSH(num_perm=_PERMUTATIONS, params=_bands_and_rows(similarity))


def _shingles(text: str) -> frozenset[int]:
    """32-bit hashes of the shingles."""
    normal = " ".join(text.lower().split()).encode()
    last = max(1, len(normal) - _SHINGLE + 1)
    return frozenset(zlib.crc32(normal[start : start + _SHINGLE]) for start in range(last))


def _bands_and_rows(similarity: float) -> tuple[int, int]:
    """The most rows, for fewest candidates, at which a pair just similar enough is missed at most
    once in a thousand times: it shares no band with probability (1 - similarity ** rows) ** bands.
    From a similarity of 0.1 on, bands of one row are good enough."""
    rows = max(
        rows
        for rows in range(1, _PERMUTATIONS + 1)
        if rows == 1 or (1 - similarity**rows) ** (_PERMUTATIONS // rows) <= _MISSED
    )
    return _PERMUTATIONS // rows, rows


def _jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def _answer(example: Example) -> Any:
    return tuple(sorted(example.answer().items(), key=lambda item: item[0]))
