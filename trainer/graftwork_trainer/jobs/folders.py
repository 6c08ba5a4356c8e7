"""Where a job keeps its files.

JOBS/ID/job.json       what the worker is given
JOBS/ID/worker.log     what it and its libraries said
JOBS/ID/report/        report.md, report.json and plots
JOBS/ID/tensorboard/   curves
JOBS/ID/work/          checkpoints and the candidate; gone once the job has ended
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from graftwork_trainer.jobs.errors import UnknownJob

WORK = "work"
RUN = "run"  # of the training, in the work folder
TENSORBOARD = "tensorboard"
REPORT = "report"
JOB_FILE = "job.json"


@dataclass(frozen=True, slots=True)
class Report:
    markdown: str
    json: str
    plots: tuple[tuple[str, bytes], ...]  # filenames with their PNG


@dataclass(frozen=True, slots=True)
class JobFolders:
    """Under one root."""

    root: Path

    def of(self, job_id: str) -> Path:
        """Raises UnknownJob for what can be no id."""
        if not job_id or not all(char.isalnum() or char == "-" for char in job_id):
            raise UnknownJob(job_id)
        return self.root / job_id

    def with_work(self) -> list[str]:
        """The jobs whose work folders are there."""
        return sorted(path.parent.name for path in self.root.glob(f"*/{WORK}"))

    def clear(self, job_id: str) -> None:
        """Frees what only a running job needs, and keeps its curves."""
        folder = self.of(job_id)
        curves = folder / WORK / RUN / TENSORBOARD
        if curves.is_dir() and not (folder / TENSORBOARD).exists():
            curves.rename(folder / TENSORBOARD)
        shutil.rmtree(folder / WORK, ignore_errors=True)

    def report(self, job_id: str) -> Report | None:
        """The evaluation of a job; None before there is one."""
        folder = self.of(job_id) / REPORT
        try:
            markdown = (folder / "report.md").read_text(encoding="utf-8")
            json_text = (folder / "report.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        plots = tuple((path.name, path.read_bytes()) for path in sorted(folder.glob("*.png")))
        return Report(markdown, json_text, plots)
