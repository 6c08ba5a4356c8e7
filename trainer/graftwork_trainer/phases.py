"""What a training job does, from feedback to a live version: five phases, each of which may be
repeated after a crash and then goes on, or finds that it is done.

    dataset      feedback over gRPC -> a snapshot
    search       trials -> hyperparameters, where the job wants that
    training     the snapshot -> an adapter's folder
    evaluation   upload as a version that is not live -> the gate's verdict and report
    promotion    what passed goes live, or is to get a share of the traffic
"""

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format
from graftwork import Client

from graftwork_trainer.curve import LossCurve
from graftwork_trainer.datasets import snapshot as snapshots
from graftwork_trainer.datasets.snapshot import Snapshot
from graftwork_trainer.evaluation.report_content import JobFacts
from graftwork_trainer.evaluation.report_content import Trial as ReportTrial
from graftwork_trainer.evaluation.reward_gate import RewardGateResult, run_reward_gate
from graftwork_trainer.evaluation.rollout_report import add_rollouts
from graftwork_trainer.evaluation.run import GateResult, run_gate
from graftwork_trainer.feedback_stream import exported
from graftwork_trainer.job_state import StateFile
from graftwork_trainer.jobs import events
from graftwork_trainer.jobs.folders import REPORT, RUN, WORK
from graftwork_trainer.jobs.launcher import JobOrder
from graftwork_trainer.jobs.records import CanaryDraft, Progress
from graftwork_trainer.jobs.spec import JobSpec, PromotionMode
from graftwork_trainer.jobs.states import JobState
from graftwork_trainer.recipes.options import OPTIONS
from graftwork_trainer.rollouts import HISTORY_FILE
from graftwork_trainer.stop import Stop

if TYPE_CHECKING:
    from graftwork_trainer.training_phase import TrainingPhase

Tell = Callable[[events.Event], None]


class JobPhases:
    """One job, in its folder. Raises the errors of `graftwork.errors`, WireError, OSError."""

    def __init__(
        self,
        order: JobOrder,
        spec: JobSpec,
        folder: Path,
        *,
        client: Client,
        tell: Tell,
        stop: Stop,
    ) -> None:
        self._order = order
        self._spec = spec
        self._folder = folder
        self._work = folder / WORK
        self._client = client
        self._tell = tell
        self._stop = stop
        self._file = StateFile(self._work)
        self._curve = LossCurve(self._work)
        self._loaded: TrainingPhase | None = None

    def run(self) -> events.Finished:
        with self._phase("dataset"):
            snapshot = self._snapshot()
        if self._spec.search is not None:
            with self._phase("search"):
                self._search(snapshot)
        with self._phase("training"):
            adapter = self._train(snapshot)
        while True:
            with self._phase("evaluation"):
                version = self._upload(adapter)
                verdict = self._verdict(snapshot, version)
            if not verdict["passed"]:
                return events.Finished(JobState.REFUSED, verdict["message"])
            if self._live() in (verdict["incumbent"], version):
                break
            self._file.update(verdict=None)  # another version went live: is it better than that?
        with self._phase("promotion"):
            self._stop.hold()
            canary = self._promote(version)
        return events.Finished(JobState.SUCCEEDED, verdict["message"], canary)

    def _snapshot(self) -> Snapshot:
        root, dataset = Path(self._order.snapshots), self._spec.dataset
        digest = self._file.state.snapshot or dataset.snapshot
        if dataset.settings is None or digest:
            snapshot = snapshots.open_snapshot(root, digest)
        else:
            examples = exported(self._order.server, dataset.settings)
            snapshot = snapshots.build(
                examples, dataset.settings, root, template_hash=self._order.template_hash
            )
        self._file.update(snapshot=snapshot.digest)
        self._tell(events.Snapshot(snapshot.digest))
        return snapshot

    def _search(self, snapshot: Snapshot) -> None:
        if self._file.state.chosen is not None:
            return
        found = self._training(snapshot).search(self._work / "search", self._tell_trial)
        self._file.update(chosen=found.chosen, trials=found.trials)

    def _train(self, snapshot: Snapshot) -> Path:
        folder = self._work / RUN
        if self._file.state.version:  # then what it gave is registered
            return folder
        chosen = self._file.state.chosen or {}
        return self._training(snapshot).train(folder, chosen, self._report_step)

    def _training(self, snapshot: Snapshot) -> "TrainingPhase":
        if self._loaded is None:
            # Seconds of imports, which jobs that end before them do without.
            from graftwork_trainer.training_phase import TrainingPhase  # noqa: PLC0415

            self._loaded = TrainingPhase(
                self._order, self._spec, snapshot, self._initial(), self._stop
            )
        return self._loaded

    def _initial(self) -> Path | None:
        """The adapter to go on from, downloaded once."""
        if not self._spec.initial_version:
            return None
        folder = self._work / "initial"
        if not folder.exists():
            self._client.adapters.download(self._spec.initial_version, folder)
        return folder

    def _upload(self, adapter: Path) -> str:
        """Registers the candidate, not live; once, however often this is called."""
        if not self._file.state.version:
            version = self._client.adapters.upload(
                self._spec.adapter,
                adapter,
                make_live=False,
                request_id=self._request_id("candidate"),
            )
            self._file.update(version=version.selector)
        self._tell(events.Version(self._file.state.version))
        return self._file.state.version

    def _verdict(self, snapshot: Snapshot, version: str) -> Mapping[str, Any]:
        """The gate's, the same in every attempt: once the candidate is live, there is no incumbent
        left to compare it with."""
        if self._file.state.verdict is None:
            incumbent = self._live()
            result = self._evaluate(snapshot, version)
            self._file.update(
                verdict={
                    "passed": result.passed,
                    "message": result.message,
                    "incumbent": incumbent,
                }
            )
        return self._file.state.verdict or {}

    def _live(self) -> str:
        """ "name@version", or "" where no version is live."""
        live = self._client.adapters.get(self._spec.adapter).live_version
        return f"{self._spec.adapter}@{live}" if live else ""

    def _evaluate(self, snapshot: Snapshot, version: str) -> GateResult | RewardGateResult:
        def progress(done: int, total: int) -> None:
            self._tell(Progress("evaluation", step=done, total_steps=total))

        if self._spec.recipe == "reward":
            return run_reward_gate(
                self._client,
                candidate=version,
                adapter=self._spec.adapter,
                snapshot=snapshot.folder,
                spec=self._spec.gate,
                report=self._folder / REPORT,
                facts=self._facts(snapshot),
                progress=progress,
            )
        result = run_gate(
            self._client,
            candidate=version,
            adapter=self._spec.adapter,
            snapshot=snapshot.folder,
            spec=self._spec.gate,
            report=self._folder / REPORT,
            cache=self._work / "gate",
            facts=self._facts(snapshot),
            curve=self._curve.points(),
            trials=[ReportTrial(**asdict(trial)) for trial in self._file.state.trials],
            progress=progress,
        )
        if OPTIONS[self._spec.recipe].is_online:
            history = json.loads((self._work / RUN / HISTORY_FILE).read_text())
            add_rollouts(self._folder / REPORT, history)
        return result

    def _facts(self, snapshot: Snapshot) -> JobFacts:
        sent = json_format.MessageToDict(self._order.spec, preserving_proto_field_name=True)
        return JobFacts(
            spec=sent,
            seed=self._spec.hyperparameters.seed,
            digests={
                "snapshot": snapshot.digest,
                "base": self._client.model().digest,
                "candidate": self._client.adapters.get_version(self._file.state.version).digest,
            },
            durations_s=self._file.state.durations_s,
        )

    def _promote(self, version: str) -> CanaryDraft | None:
        """Makes the candidate live, or returns the canary that it is to be: the server shares its
        traffic once it is noted as one."""
        name, _, number = version.partition("@")
        promotion = self._spec.promotion
        if promotion.mode is PromotionMode.NONE:
            return None
        if promotion.mode is PromotionMode.CANARY and (canary := self._canary(int(number))):
            return canary
        self._client.adapters.update(
            name,
            live_version=int(number),
            traffic_split={},
            request_id=self._request_id("live"),
        )
        return None

    def _canary(self, version: int) -> CanaryDraft | None:
        """What is to be watched, the same in every attempt; None without a live version, when
        there is nothing to compare with and the candidate goes live."""
        if self._file.state.canary is None:
            live = self._client.adapters.get(self._spec.adapter).live_version
            if not live or live == version:
                return None
            promotion = self._spec.promotion
            draft = CanaryDraft(
                adapter=self._spec.adapter,
                version=version,
                incumbent=live,
                percent=promotion.canary_percent,
                feedback=promotion.canary_feedback,
                tolerance=promotion.canary_tolerance,
                start_time_ns=time.time_ns(),
            )
            self._file.update(canary=asdict(draft))
        return CanaryDraft(**(self._file.state.canary or {}))

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Tells that a phase begins, and counts what it takes."""
        self._tell(Progress(name))
        began = time.monotonic()
        yield
        durations = dict(self._file.state.durations_s)
        durations[name] = durations.get(name, 0.0) + time.monotonic() - began
        self._file.update(durations_s=durations)

    def _report_step(self, progress: Progress) -> None:
        self._curve.add(progress.step, progress.loss)
        self._tell(progress)

    def _tell_trial(self, done: int, total: int, best_loss: float | None) -> None:
        self._tell(Progress("search", step=done, total_steps=total, loss=best_loss or 0.0))

    def _request_id(self, purpose: str) -> str:
        """The same in every attempt of a job, so that the server does a thing once."""
        return str(uuid.uuid5(uuid.UUID(self._order.job_id), purpose))
