"""How a job decides about its candidate, with the work of the phases left out."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from graftwork_trainer.job_state import StateFile
from graftwork_trainer.jobs.states import JobState
from graftwork_trainer.phases import JobPhases
from graftwork_trainer.stop import Stop


@dataclass(frozen=True)
class Result:
    passed: bool
    message: str


class ScriptedPhases(JobPhases):
    """`live` is what is live at each look, `results` what the gate finds each time."""

    def __init__(self, folder: Path, live: list[str], results: list[Result]) -> None:
        self._spec = SimpleNamespace(search=None)
        self._file = StateFile(folder)
        self._tell = lambda event: None
        self._stop = Stop()
        self.live, self.results, self.promoted = live, results, []

    def _snapshot(self):
        return None

    def _train(self, snapshot):
        return Path()

    def _upload(self, adapter):
        return "poet@6"

    def _live(self):
        return self.live.pop(0)

    def _evaluate(self, snapshot, version):
        return self.results.pop(0)

    def _promote(self, version):
        self.promoted.append(version)


def test_what_passed_goes_live(tmp_path: Path):
    phases = ScriptedPhases(tmp_path, ["poet@5", "poet@5"], [Result(True, "fine")])
    assert phases.run().state is JobState.SUCCEEDED
    assert phases.promoted == ["poet@6"]


def test_it_is_judged_again_where_another_version_went_live_meanwhile(tmp_path: Path):
    results = [Result(True, "better than 5"), Result(False, "worse than 7")]
    phases = ScriptedPhases(tmp_path, ["poet@5", "poet@7", "poet@7"], results)
    finished = phases.run()
    assert (finished.state, finished.message) == (JobState.REFUSED, "worse than 7")
    assert phases.promoted == []


def test_the_next_attempt_does_not_judge_a_candidate_that_is_live(tmp_path: Path):
    first = ScriptedPhases(tmp_path, ["poet@5", "poet@5"], [Result(True, "better than 5")])
    first.run()
    again = ScriptedPhases(tmp_path, ["poet@6"], [])
    finished = again.run()
    assert (finished.state, finished.message) == (JobState.SUCCEEDED, "better than 5")
