"""A process killed while it writes: what it had acknowledged is there."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from graftwork_trainer.journal.journal import Journal
from graftwork_trainer.journal.judge import Rules
from graftwork_trainer.journal.records import FeedbackFilter


def run_and_kill(place: str | Path, seconds: float) -> set[str]:
    """What the process acknowledged."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.trainer.journal.feeding_process", str(place)],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(seconds)
    process.kill()
    output, _ = process.communicate()
    whole_lines = output[: output.rfind("\n") + 1].splitlines()
    return {word for line in whole_lines for word in line.split()}


def check_rounds(place: str | Path, open_journal: Callable[..., Journal], rounds: int) -> None:
    acknowledged: set[str] = set()
    draw = random.Random(7)
    for _ in range(rounds):
        acknowledged |= run_and_kill(place, draw.uniform(0.02, 0.4))
        journal = open_journal(Rules(retention_days=None))
        kept = {f.id for batch in journal.feedback_batches(FeedbackFilter()) for f in batch}
        journal.close()
        assert acknowledged <= kept
    assert acknowledged


def test_acknowledged_feedback_survives_a_kill(
    place: str | Path, open_journal: Callable[..., Journal]
) -> None:
    check_rounds(place, open_journal, 2)


@pytest.mark.slow
def test_acknowledged_feedback_survives_fifty_kills(
    place: str | Path, open_journal: Callable[..., Journal]
) -> None:
    check_rounds(place, open_journal, 50)
