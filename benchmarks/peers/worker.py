"""A peer in a process of its own: batches as JSON lines on its input, runs on its output.

Imports only the standard library, since it is also imported in the peers' own environments.
"""

import json
import os
import sys
from typing import TextIO

from benchmarks.peers.runs import Batch, Generate, Run


def private_stdout() -> TextIO:
    """The process's output, for answers only: what a library prints goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def serve(generate: Generate, answers: TextIO) -> None:
    """Says that it is ready, then answers batches until its input ends."""
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        run = generate(Batch(**json.loads(line)))
        answer = {"token_ids": run.token_ids, "arrivals": run.arrivals}
        print(json.dumps(answer), file=answers, flush=True)


def parse_run(line: str) -> Run:
    return Run(**json.loads(line))
