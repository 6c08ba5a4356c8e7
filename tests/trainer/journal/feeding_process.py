"""Gives feedback as fast as it can and prints what was acknowledged, until it is killed:

python -m tests.trainer.journal.feeding_process PLACE
"""

import sys
import time
from pathlib import Path

from graftwork_trainer.journal.journal import Journal
from graftwork_trainer.journal.judge import Rules
from graftwork_trainer.journal.records import Feedback

from tests.trainer.journal.helpers import Clock, Ids, Observer, draft, generation


def main() -> None:
    place = sys.argv[1] if "://" in sys.argv[1] else Path(sys.argv[1])
    clock = Clock()
    clock.now_ns = time.time_ns()
    ids = Ids(clock)
    journal = Journal.open(
        place, Rules(retention_days=30), Observer(), new_id=ids.new, clock_ns=clock
    )
    print("ready", flush=True)
    for _ in range(1_000_000):
        clock.now_ns += 1_000_000
        made = [generation(ids, clock) for _ in range(5)]
        for one in made:
            journal.log(one)
        outcomes = journal.submit([draft(generation_id=one.id, thumbs=1) for one in made]).result()
        assert all(isinstance(outcome, Feedback) for outcome in outcomes)
        print(*(one.id for one in outcomes), flush=True)


if __name__ == "__main__":
    main()
