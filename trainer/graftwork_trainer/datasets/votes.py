"""Thumbs by prompt and answer, until all are known: on the disk, however many there are.

The file is SQLite's own temporary one, which is nobody else's and goes with the connection.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from graftwork.v1.feedback_service_pb2 import THUMBS_UP, Feedback, Generation

from graftwork_trainer.datasets.judged import Answer, Asked, Item

_TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA temp_store = FILE;
PRAGMA cache_size = -4096;  -- KiB
CREATE TABLE prompts (number INTEGER PRIMARY KEY, key BLOB UNIQUE);
-- With the first feedback on each answer, and the generation that gave it, NULL where none did.
CREATE TABLE answers (
    number INTEGER PRIMARY KEY, prompt INTEGER, key BLOB, feedback BLOB, generation BLOB,
    UNIQUE (prompt, key)
);
CREATE TABLE votes (answer INTEGER, voter TEXT, vote INTEGER, PRIMARY KEY (answer, voter))
    WITHOUT ROWID;
"""
_RANK = """
CREATE TABLE scores AS
    SELECT answer, SUM(vote) AS score FROM votes GROUP BY answer;
CREATE TABLE ranked (
    prompt INTEGER, is_liked INTEGER, place INTEGER, answer INTEGER,
    PRIMARY KEY (prompt, is_liked, place)
) WITHOUT ROWID;
INSERT INTO ranked
    SELECT prompt, score > 0,
        ROW_NUMBER() OVER (PARTITION BY prompt, score > 0 ORDER BY number), number
    FROM scores JOIN answers ON number = answer WHERE score <> 0;
"""
_PAIRS = """
SELECT up.feedback, up.generation, down.feedback, down.generation
FROM ranked AS liked
JOIN ranked AS disliked USING (prompt, place)
JOIN answers AS up ON up.number = liked.answer
JOIN answers AS down ON down.number = disliked.answer
WHERE liked.is_liked = 1 AND disliked.is_liked = 0
ORDER BY liked.prompt, liked.place
"""


@dataclass(frozen=True, slots=True)
class Voted:
    """An answer that more people like than not, or the other way round."""

    item: Item  # the first of feedback on it
    asked: Asked
    answer: Answer

    @classmethod
    def read(cls, feedback: bytes, generation: bytes | None) -> Self:
        about = [] if generation is None else [Generation.FromString(generation)]
        item = Item.of(Feedback.FromString(feedback), about)
        [(asked, answer)] = item.answered()
        return cls(item, asked, answer)


class Votes:
    """Not for two threads at once. Close it."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._database.executescript(_TABLES)

    def close(self) -> None:
        self._database.close()

    def add(self, item: Item) -> None:
        """Whoever gives no name votes each time anew; of others the last vote counts. Raises
        Nothing."""
        vote = 1 if item.feedback.thumbs == THUMBS_UP else -1
        voter = json.dumps(item.feedback.author or item.feedback.id)  # any text, NUL included
        execute = self._database.execute
        for asked, answer in item.answered():
            prompt = (_prompt_key(asked),)
            execute("INSERT OR IGNORE INTO prompts (key) VALUES (?)", prompt)
            [(number,)] = execute("SELECT number FROM prompts WHERE key = ?", prompt)
            of_answer = (number, _digest(answer.text))
            execute(
                "INSERT OR IGNORE INTO answers (prompt, key, feedback, generation) "
                "VALUES (?, ?, ?, ?)",
                (*of_answer, item.feedback.SerializeToString(), _written(asked)),
            )
            execute(
                "INSERT OR REPLACE INTO votes "
                "SELECT number, ?, ? FROM answers WHERE prompt = ? AND key = ?",
                (voter, vote, *of_answer),
            )

    def pairs(self) -> Iterator[tuple[Voted, Voted]]:
        """Each answer that is liked, with one to the same prompt that is not. Every answer takes
        part in at most one pair, so that a popular prompt does not outweigh all others. Call it
        once, when all is added."""
        self._database.executescript(_RANK)
        for row in self._database.execute(_PAIRS):
            yield Voted.read(*row[:2]), Voted.read(*row[2:])

    @property
    def num_contradictory(self) -> int:
        """Answers with as many thumbs up as down; known once `pairs` has begun."""
        [(count,)] = self._database.execute("SELECT COUNT(*) FROM scores WHERE score = 0")
        return int(count)


def _prompt_key(asked: Asked) -> bytes:
    return _digest(json.dumps([asked.task, asked.prompt.to_json()]))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _written(asked: Asked) -> bytes | None:
    return None if asked.generation is None else asked.generation.SerializeToString()
