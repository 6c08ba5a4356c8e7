"""The gate from end to end over a fake client: who passes, who is refused, and what is asked."""

import json
import random
from pathlib import Path

import pytest
from graftwork import Origin
from graftwork.errors import Internal, Unavailable
from graftwork.v1.feedback_service_pb2 import ExampleSelection
from graftwork_trainer.datasets.settings import DatasetSettings
from graftwork_trainer.datasets.snapshot import build
from graftwork_trainer.evaluation.errors import NothingToEvaluate
from graftwork_trainer.evaluation.gate_spec import GateSpec
from graftwork_trainer.evaluation.outcomes import Role
from graftwork_trainer.evaluation.report_content import CurvePoint, JobFacts, Trial
from graftwork_trainer.evaluation.run import GateResult, run_gate

from tests.trainer.evaluation.fakes import (
    FakeClient,
    always,
    chatty,
    line,
    mostly_right,
    right,
    save_snapshot,
    shuffled,
)


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    return save_snapshot(tmp_path / "snapshot")


def gate(client: FakeClient, snapshot: Path, candidate: str = "spam@2", **changes) -> GateResult:
    settings = {
        "candidate": candidate,
        "adapter": "spam",
        "snapshot": snapshot,
        "spec": GateSpec(),
        "report": snapshot.parent / "report",
        "cache": snapshot.parent / "work" / "evaluation",
        "facts": JobFacts(),
    }
    return run_gate(client, **{**settings, **changes})


def test_a_good_candidate_passes(snapshot: Path):
    client = FakeClient({"": always("ham"), "spam@1": shuffled, "spam@2": mostly_right}, live=1)
    result = gate(client, snapshot, spec=GateSpec(min_accuracy=0.9, min_f1=0.8))
    assert result.passed, result.message
    assert result.incumbent == "spam@1"
    assert result.metrics["accuracy"] > 0.9
    assert result.message.startswith("passed the gate: loss")
    assert {check.name for check in result.verdict.checks} == {
        "answered", "finite_loss", "not_constant", "learned", "min_accuracy", "min_f1",
        "regression", "gain_over_base",
    }  # fmt: skip


@pytest.mark.parametrize("base", [always("ham"), always("spam"), shuffled, chatty])
def test_a_candidate_trained_on_shuffled_labels_is_refused(snapshot: Path, base):
    client = FakeClient({"": base, "spam@1": shuffled})
    result = gate(client, snapshot, "spam@1")
    assert not result.passed
    assert "as if the labels had been shuffled" in result.message
    report = (snapshot.parent / "report" / "report.md").read_text()
    assert report.startswith("# spam@1: refused")
    assert "as if the labels had been shuffled" in report


def test_shuffled_labels_against_a_good_incumbent_are_a_regression(snapshot: Path):
    client = FakeClient({"": always("ham"), "spam@1": right, "spam@2": shuffled}, live=1)
    refused = {c.name for c in gate(client, snapshot).verdict.checks if not c.passed}
    assert {"regression", "learned"} <= refused


def test_a_candidate_of_one_class_is_refused(snapshot: Path):
    client = FakeClient({"": always("spam"), "spam@1": always("ham")})
    result = gate(client, snapshot, "spam@1")
    assert 'it answers "ham" to all 100 examples' in result.message


def test_a_diverged_candidate_is_refused(snapshot: Path):
    client = FakeClient({"": always("ham"), "spam@1": right})
    client.nan = True
    result = gate(client, snapshot, "spam@1")
    assert "the training has diverged" in result.message
    assert json.loads((snapshot.parent / "report" / "report.json").read_text())["passed"] is False


def test_a_candidate_that_cannot_be_computed_is_refused(snapshot: Path):
    def broken(_: str) -> str:
        raise Internal("the model's logits are not finite")

    client = FakeClient({"": always("ham"), "spam@1": broken})
    assert "it answered 0 of 100 examples; the first that failed: the model's logits" in (
        gate(client, snapshot, "spam@1").message
    )


def test_a_resumed_job_asks_only_what_is_missing(snapshot: Path):
    answerers = {"": always("ham"), "spam@1": shuffled, "spam@2": right}
    client = FakeClient(answerers, live=1)
    first = gate(client, snapshot)
    asked = len(client.requests)
    assert asked
    again = gate(client, snapshot)
    assert len(client.requests) == asked
    assert again.verdict == first.verdict
    client = FakeClient({**answerers, "spam@3": right}, live=1)
    gate(client, snapshot, "spam@3")
    assert {request["adapter"] for request in client.requests} == {"spam@3"}


def test_requests_are_marked_and_wait_for_a_full_queue(snapshot: Path):
    client = FakeClient({"": always("ham"), "spam@1": right})
    client.full = 40
    assert gate(client, snapshot, "spam@1").passed
    assert {request["origin"] for request in client.requests} == {Origin.EVALUATION}
    assert {request["task"] for request in client.requests} == {"sms-spam"}
    assert all(request["priority"] < 0 for request in client.requests)


def test_other_failures_are_raised(snapshot: Path):
    client = FakeClient({"": always("ham"), "spam@1": right})
    client.broken = Unavailable("the server is draining")
    with pytest.raises(Unavailable):
        gate(client, snapshot, "spam@1")


def test_examples_that_do_not_fit_are_told(snapshot: Path):
    client = FakeClient({"": always("ham"), "spam@1": right})
    client.too_long = {"message 61:", "message 62:"}
    result = gate(client, snapshot, "spam@1")
    assert result.passed
    assert next(s.num_unanswered for s in result.summaries if s.split.value == "validation") == 2


def test_no_more_than_max_examples_are_asked_and_progress_is_told(snapshot: Path):
    client = FakeClient({"": always("ham"), "spam@1": right})
    told: list[tuple[int, int]] = []
    spec = GateSpec(max_examples=30)
    result = gate(
        client,
        snapshot,
        "spam@1",
        spec=spec,
        progress=lambda done, total: told.append((done, total)),
    )
    assert all(summary.num_examples <= 30 for summary in result.summaries)
    # Candidate, base and few-shot on the validation split, the candidate on the golden set.
    assert told[-1] == (120, 120)
    assert told == sorted(told)


def test_few_shot_prompts_are_compared_with(snapshot: Path):
    client = FakeClient({"": right, "spam@1": right})
    result = gate(client, snapshot, "spam@1")
    assert Role.FEW_SHOT in {summary.role for summary in result.summaries}
    assert any("fine-tuning may not be worth it" in advice for advice in result.verdict.advice)
    alone = gate(client, snapshot, "spam@1", spec=GateSpec(few_shot=0))
    assert Role.FEW_SHOT not in {summary.role for summary in alone.summaries}


def test_a_snapshot_without_right_answers_is_refused(snapshot: Path):
    (snapshot / "validation.jsonl").write_text("")
    with pytest.raises(NothingToEvaluate, match="validation"):
        gate(FakeClient({"": right, "spam@1": right}), snapshot, "spam@1")


def test_the_report_has_everything(snapshot: Path):
    client = FakeClient({"": chatty, "spam@1": shuffled, "spam@2": mostly_right}, live=1)
    noise = random.Random(0)
    curve = [
        CurvePoint(
            step,
            3 * 0.97**step + noise.random() * 0.1,
            3 * 0.97**step + 0.2 if step % 10 == 0 else None,
        )
        for step in range(1, 61)
    ]
    trials = [Trial(n, {"learning_rate": 1e-4 * (n + 1), "rank": 8}, 1 / (n + 1)) for n in range(4)]
    trials.append(Trial(4, {"learning_rate": 0.1, "rank": 64}, None, "pruned"))
    facts = JobFacts({"adapter": "spam"}, 7, {"adapter files": "sha256:a"}, {"training": 12.5})
    result = gate(client, snapshot, curve=curve, trials=trials, facts=facts)
    folder = snapshot.parent / "report"
    assert result.plots == ("metrics.png", "confusion.png", "loss.png", "search.png")
    for name in result.plots:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    report = json.loads((folder / "report.json").read_text())
    assert report["job"]["seed"] == 7
    assert report["job"]["durations_s"].keys() == {"training", "evaluation"}
    assert [c["role"] for c in report["contenders"]] == [
        "candidate", "incumbent", "base", "few-shot",
    ]  # fmt: skip
    page = (folder / "report.md").read_text()
    for part in ("spam (positive)", "| 4 | pruned | –", "![loss](loss.png)", "| sms-spam | all |"):
        assert part in page


def test_classes_that_read_like_formulas_are_drawn(snapshot: Path):
    for path in snapshot.glob("*.jsonl"):
        path.write_text(path.read_text().replace('"completion": "spam"', r'"completion": "$\\x$"'))
    answerer = lambda text: r"$\x$" if right(text) == "spam" else "ham"  # noqa: E731
    client = FakeClient({"": always("ham"), "spam@1": answerer})
    assert gate(client, snapshot, "spam@1").passed


def test_a_snapshot_that_was_built_is_read(tmp_path: Path):
    spam = [number % 5 == 0 for number in range(200)]
    lines = [json.loads(line(n, prefix="sent", spam=spam[n])) for n in range(200)]
    selection = ExampleSelection(format="classification")
    # The messages differ in their numbers only.
    settings = DatasetSettings(selection=selection, duplicate_similarity=1.0, balance=1.0)
    built = build(lines, settings, tmp_path / "datasets")
    client = FakeClient({"": always("ham"), "spam@1": right})
    result = gate(
        client, built.folder, "spam@1", report=tmp_path / "report", cache=tmp_path / "work"
    )
    assert result.passed
    found = result.summaries[0].classification
    assert found is not None
    assert found.positive == "spam"  # though the training examples are balanced
    page = (tmp_path / "report" / "report.md").read_text()
    assert f"Snapshot `{built.digest}`" in page
    assert "| task | class | train | validation | golden |" in page
