"""A worker without torch: does what the `recipe_options` of its job say, in order.

    {"do": ["progress", "snapshot", "version", "crash", "succeed"]}

What stands before a "crash" or "hang" is done again by the next attempt; "once:" before a word
leaves it out from the second attempt on.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from graftwork_trainer.jobs.events import Failed, Finished, Snapshot, Version, to_line
from graftwork_trainer.jobs.folders import REPORT
from graftwork_trainer.jobs.launcher import JobOrder
from graftwork_trainer.jobs.priority import die_with, step_back
from graftwork_trainer.jobs.records import CanaryDraft, Progress
from graftwork_trainer.jobs.states import JobState


def main(folder: Path) -> None:
    order = JobOrder.read(folder / "job.json")
    die_with(order.server_pid)
    step_back(order.scheduling, order.niceness)
    (folder / "pid").write_text(str(os.getpid()))
    attempts = folder / "attempts"
    attempt = len(attempts.read_text()) if attempts.exists() else 0
    with attempts.open("a") as file:
        file.write("x")
    for word in order.spec.recipe_options["do"]:
        act(str(word), folder, attempt)


def act(word: str, folder: Path, attempt: int) -> None:
    if word.startswith("once:"):
        if attempt:
            return
        word = word.removeprefix("once:")
    match word:
        case "progress":
            tell(Progress("training", step=1, total_steps=4, loss=2.5, metrics={"x": 1.0}))
        case "snapshot":
            tell(Snapshot("sha256:" + "5" * 64))
        case "version":
            tell(Version("poet@1"))
        case "rubbish":
            print("this is no event", flush=True)
            print("a long line of " + "x" * 3_000_000, flush=True)
        case "noise":
            for _ in range(300):
                print("noise " * 2000, file=sys.stderr)
        case "crash":
            raise RuntimeError("the disk caught fire")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            sys.exit(0)
        case "hang":
            time.sleep(600)
        case "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        case "grow":
            kept = bytearray(200 << 20)
            kept[::4096] = b"x" * len(kept[::4096])
            time.sleep(600)
        case "report":
            (folder / REPORT).mkdir(exist_ok=True)
            (folder / REPORT / "report.md").write_text("# Passed")
            (folder / REPORT / "report.json").write_text(json.dumps({"passed": True}))
            (folder / REPORT / "roc.png").write_bytes(b"\x89PNG")
        case "succeed":
            tell(Finished(JobState.SUCCEEDED))
        case "refuse":
            tell(Finished(JobState.REFUSED, "accuracy 0.4 is below 0.9"))
        case "canary":
            tell(Finished(JobState.SUCCEEDED, "", CanaryDraft("poet", 2, 1, 10, 20, 0.1, 7)))
        case "fail":
            tell(Failed("dataset too small"))
        case _:
            raise ValueError(word)


def tell(event) -> None:
    sys.stdout.write(to_line(event))
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
