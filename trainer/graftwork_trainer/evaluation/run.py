"""The gate from end to end: asks all contenders, decides, writes the report."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graftwork import Client

from graftwork_trainer.evaluation.errors import NothingToEvaluate
from graftwork_trainer.evaluation.evaluate import MAX_IN_FLIGHT, Contender, Evaluator
from graftwork_trainer.evaluation.examples import (
    EvaluationExample,
    classes_by_task,
    read_examples,
    sample,
)
from graftwork_trainer.evaluation.few_shot import demonstrations
from graftwork_trainer.evaluation.gate import Verdict, decide
from graftwork_trainer.evaluation.gate_spec import GateSpec
from graftwork_trainer.evaluation.metrics import positive_class
from graftwork_trainer.evaluation.outcomes import Outcome, Role, Split, TaskEvidence
from graftwork_trainer.evaluation.report import write_report
from graftwork_trainer.evaluation.report_content import (
    ContenderFacts,
    CurvePoint,
    JobFacts,
    ReportContent,
    Trial,
)
from graftwork_trainer.evaluation.summary import Summary, summarize

_GOLDEN_ROLES = (Role.CANDIDATE, Role.INCUMBENT)
_LONGEST_MESSAGE = 2000


@dataclass(frozen=True, slots=True)
class GateResult:
    """What came of it. The report lies in the folder that `run_gate` was given."""

    verdict: Verdict
    incumbent: str  # "name@version", or "" where no version was live
    summaries: tuple[Summary, ...]
    plots: tuple[str, ...]  # filenames

    @property
    def passed(self) -> bool:
        return self.verdict.passed

    @property
    def message(self) -> str:
        """One line for the job: why it was refused, or what it achieves."""
        if not self.passed:
            return ("refused: " + "; ".join(self.verdict.reasons))[:_LONGEST_MESSAGE]
        figures = ", ".join(f"{name} {value:.3f}" for name, value in self.metrics.items())
        return f"passed the gate: {figures}"[:_LONGEST_MESSAGE]

    @property
    def metrics(self) -> dict[str, float]:
        """The candidate's figures on the validation split; with the task where there are several,
        such as "accuracy" or "accuracy/sms-spam"."""
        own = [
            s for s in self.summaries if s.role is Role.CANDIDATE and s.split is Split.VALIDATION
        ]
        found: dict[str, float] = {}
        for summary in own:
            suffix = f"/{summary.task}" if len(own) > 1 else ""
            found[f"loss{suffix}"] = summary.loss
            if summary.accuracy is not None and summary.f1 is not None:
                found[f"accuracy{suffix}"] = summary.accuracy.value
                found[f"f1{suffix}"] = summary.f1.value
            elif summary.win_rate_over_base is not None:
                found[f"win_rate_over_base{suffix}"] = summary.win_rate_over_base.value
        return found


def run_gate(
    client: Client,
    *,
    candidate: str,
    adapter: str,
    snapshot: Path,
    spec: GateSpec,
    report: Path,
    cache: Path,
    facts: JobFacts,
    curve: Sequence[CurvePoint] = (),
    trials: Sequence[Trial] = (),
    progress: Callable[[int, int], None] | None = None,
    max_in_flight: int = MAX_IN_FLIGHT,
) -> GateResult:
    """Evaluates `candidate` ("name@version", uploaded and not live) and decides about it.

    The incumbent is the version of `adapter` that is live now, if one is. `snapshot` is a folder
    with train.jsonl, validation.jsonl, golden.jsonl and manifest.json. `report` gets report.md,
    report.json and plots; `cache` keeps what contenders answered, so that a job that goes on after
    a crash asks only what is missing. `progress` is told examples done and all there are, from
    this thread. Promotes nothing.

    Raises NothingToEvaluate, InvalidExample for a line of the snapshot, OSError where the report
    cannot be written, and the errors of `graftwork.errors`.
    """
    started = time.monotonic()
    data = _Data.read(snapshot, spec.max_examples)
    contenders = _contenders(client, candidate, adapter, spec, data)
    evaluator = Evaluator(client, data.classes, cache, max_in_flight=max_in_flight)
    evidence = _evidence(evaluator, contenders, data, progress)
    verdict = decide(spec, evidence)
    summaries = tuple(summarize(item, role) for item in evidence for role in item.outcomes)
    durations = {**facts.durations_s, "evaluation": time.monotonic() - started}
    content = ReportContent(
        adapter=adapter,
        spec=spec,
        verdict=verdict,
        contenders=[ContenderFacts(c.role, c.selector, c.digest) for c in contenders.values()],
        summaries=summaries,
        manifest=data.manifest,
        facts=replace(facts, durations_s=durations),
        curve=curve,
        trials=trials,
    )
    drawn = write_report(report, content)
    incumbent = contenders.get(Role.INCUMBENT)
    return GateResult(verdict, incumbent.selector if incumbent else "", summaries, tuple(drawn))


@dataclass(frozen=True, slots=True)
class _Data:
    train: list[EvaluationExample]
    splits: Mapping[Split, list[EvaluationExample]]
    classes: Mapping[str, tuple[str, ...]]
    manifest: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path, max_examples: int) -> "_Data":
        # Copies made by augmentation and balancing are told by a tilde in their ids. They would
        # show the few-shot prompt broken examples, and hide which class is the rare one.
        train = [e for e in read_examples(folder / "train.jsonl") if "~" not in e.id]
        everything = {split: read_examples(folder / f"{split.value}.jsonl") for split in Split}
        splits = {split: sample(examples, max_examples) for split, examples in everything.items()}
        if not splits[Split.VALIDATION]:
            raise NothingToEvaluate(
                "no example of the validation split has one right answer (formats sft, "
                "classification and preference have)"
            )
        classes = classes_by_task(
            [*train, *everything[Split.VALIDATION], *everything[Split.GOLDEN]]
        )
        manifest = json.loads((folder / "manifest.json").read_bytes())
        return cls(train, splits, classes, manifest)

    def positive(self, task: str) -> str:
        """By what is asked, as training examples may be a chosen few of each class."""
        held_out = [e.reference for split in self.splits.values() for e in split if e.task == task]
        trained = [e.reference for e in self.train if e.task == task]
        if len(self.classes.get(task, ())) != 2:
            return ""
        return positive_class(held_out) or positive_class([*held_out, *trained])


def _contenders(
    client: Client, candidate: str, adapter: str, spec: GateSpec, data: _Data
) -> dict[Role, Contender]:
    version = client.adapters.get_version(candidate)
    base = client.model().digest
    found = {Role.CANDIDATE: Contender(Role.CANDIDATE, candidate, version.digest)}
    live = client.adapters.get(adapter).live_version
    selector = f"{adapter}@{live}"
    if live and selector != version.selector:
        digest = client.adapters.get_version(selector).digest
        found[Role.INCUMBENT] = Contender(Role.INCUMBENT, selector, digest)
    found[Role.BASE] = Contender(Role.BASE, "", base)
    tasks = {example.task for example in data.splits[Split.VALIDATION]}
    shown = {task: demonstrations(data.train, task, spec.few_shot) for task in sorted(tasks)}
    if any(shown.values()):
        found[Role.FEW_SHOT] = Contender(Role.FEW_SHOT, "", base, shown)
    return found


def _evidence(
    evaluator: Evaluator,
    contenders: Mapping[Role, Contender],
    data: _Data,
    progress: Callable[[int, int], None] | None,
) -> list[TaskEvidence]:
    runs = [
        (split, role)
        for split in Split
        for role in contenders
        if data.splits[split] and (split is Split.VALIDATION or role in _GOLDEN_ROLES)
    ]
    total = sum(len(data.splits[split]) for split, _ in runs)
    done = 0
    outcomes: dict[Split, dict[Role, tuple[Outcome, ...]]] = {split: {} for split in Split}
    for split, role in runs:
        before = done

        def tell(part: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(before + part, total)

        examples = data.splits[split]
        outcomes[split][role] = evaluator.run(contenders[role], examples, tell)
        done += len(examples)
    return [
        _task_evidence(task, split, data, outcomes[split])
        for split in Split
        for task in sorted({example.task for example in data.splits[split]})
    ]


def _task_evidence(
    task: str, split: Split, data: _Data, outcomes: Mapping[Role, tuple[Outcome, ...]]
) -> TaskEvidence:
    examples = data.splits[split]
    own = [index for index, example in enumerate(examples) if example.task == task]
    by_role = {role: tuple(column[index] for index in own) for role, column in outcomes.items()}
    if Role.FEW_SHOT in by_role and all(outcome.error for outcome in by_role[Role.FEW_SHOT]):
        del by_role[Role.FEW_SHOT]  # its prompts cannot be made, or are too long for the context
    return TaskEvidence(
        task=task,
        split=split,
        classes=data.classes.get(task, ()),
        positive=data.positive(task),
        references=tuple(examples[index].reference for index in own),
        outcomes=by_role,
    )
