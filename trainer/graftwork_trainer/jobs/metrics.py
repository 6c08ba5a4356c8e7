"""What a Prometheus server scrapes of training jobs. Called on the event loop."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from graftwork_trainer.jobs.records import Progress


class TrainingMetrics:
    """Fits `supervisor.JobObserver`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"graftwork_training_{name}", text, labels, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"graftwork_{name}", text, labels, registry=registry)

        self._jobs = gauge("jobs", "Training jobs, by state.", "state")
        self._loss = gauge("loss", "Loss of the last step of the job that runs or ran last.")
        self._step = gauge("step", "Step of the job that runs or ran last.")
        self._rate = gauge("tokens_per_second", "Tokens that the job that runs or ran last learns.")
        self._reward = gauge("reward", "Mean reward of the last step, where a recipe has one.")
        self._verdicts = counter(
            "gate_verdicts_total", "Candidates that the gate judged, by verdict.", "verdict"
        )
        self._canaries = counter(
            "canary_decisions_total", "Canaries that live feedback judged, by decision.", "decision"
        )

    def set_training_jobs(self, by_state: Mapping[str, int]) -> None:
        for state, number in by_state.items():
            self._jobs.labels(state).set(number)

    def set_training_progress(self, progress: Progress) -> None:
        if progress.phase != "training":
            return
        self._loss.set(progress.loss)
        self._step.set(progress.step)
        self._rate.set(progress.tokens_per_second)
        if "reward" in progress.metrics:
            self._reward.set(progress.metrics["reward"])

    def count_gate_verdict(self, verdict: str) -> None:
        """ "passed" or "refused"."""
        self._verdicts.labels(verdict).inc()

    def count_canary(self, decision: str) -> None:
        """ "promote" or "rollback"."""
        self._canaries.labels(decision).inc()
