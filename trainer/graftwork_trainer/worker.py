"""The process of one training job: `python -m graftwork_trainer.worker JOB_FOLDER`.

It ties its life to the server's and steps back before it imports anything large. Standard output is
for events (`jobs/events.py`), standard error for everything else.
"""

import json
import os
import sys
from pathlib import Path
from typing import TextIO

from graftwork_trainer.jobs.priority import die_with, step_back


def main(job_folder: str) -> None:
    folder = Path(job_folder)
    # `jobs.launcher.JobOrder` reads all of it.
    order = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    die_with(order["server_pid"])
    step_back(order["scheduling"], order["niceness"])
    output = _take_stdout()
    from graftwork_trainer.job_process import run_job  # noqa: PLC0415 - seconds

    run_job(folder, output)


def _take_stdout() -> TextIO:
    """Standard output for ourselves: what libraries print goes to standard error."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return ours


if __name__ == "__main__":
    main(sys.argv[1])
