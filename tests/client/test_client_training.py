"""Training jobs from both clients and the command line, against the fake server."""

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from google.protobuf import json_format
from graftwork import AsyncClient, Client, InvalidArgument, JobState, Origin, Source
from graftwork.cli import main
from graftwork.v1 import feedback_service_pb2 as feedback_pb
from graftwork.v1 import training_service_pb2 as pb

from tests.client.fake_server import FakeServer

Run = Callable[..., Result]

OPTIONS = {
    "method": "IA3",
    "method_config": {"mode": "live", "r": 8},  # not ours to read
    "dataset": {
        "selection": {
            "tasks": ("spam",),
            "format": "unpaired",
            "origins": [Origin.USER],
            "sources": [Source.HUMAN, Source.CODE],
            "after": datetime(2026, 1, 2, tzinfo=UTC),
        },
        "scrub": False,
        "mixture": {"spam": 1.0},
    },
    "hyperparameters": {"learning_rate": 1e-3, "max_steps": None, "seed": 2**63},
    "promotion": {"mode": "canary", "canary_percent": 5},
    "limits": {"max_duration": timedelta(minutes=90)},
}


@pytest.fixture
async def aclient(server: FakeServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.target, timeout=10) as opened:
        yield opened


@pytest.fixture
def run(server: FakeServer) -> Run:
    def invoke(*args: str) -> Result:
        result = CliRunner().invoke(main, ["--target", server.target, "train", *args])
        assert result.exception is None or isinstance(result.exception, SystemExit), result
        return result

    return invoke


def spec_sent(server: FakeServer) -> pb.TrainingJobSpec:
    return server.requests_of(pb.CreateTrainingJobRequest)[-1].spec


def test_every_kind_of_option_reaches_the_wire(server: FakeServer, client: Client) -> None:
    job = client.training.start("poet", **OPTIONS)
    spec = spec_sent(server)
    selection = spec.dataset.selection
    assert (spec.adapter, spec.method) == ("poet", "IA3")
    assert json_format.MessageToDict(spec.method_config) == {"mode": "live", "r": 8.0}
    assert list(selection.origins) == [1]
    assert list(selection.sources) == [
        feedback_pb.FEEDBACK_SOURCE_HUMAN,
        feedback_pb.FEEDBACK_SOURCE_CODE,
    ]
    assert selection.after.ToDatetime(tzinfo=UTC) == datetime(2026, 1, 2, tzinfo=UTC)
    assert spec.dataset.HasField("scrub")
    assert not spec.hyperparameters.HasField("max_steps")
    assert spec.hyperparameters.seed == 2**63
    assert spec.promotion.mode == pb.PromotionSpec.MODE_CANARY
    assert spec.limits.max_duration.seconds == 5400
    assert server.requests[-1].request_id
    assert (job.adapter, job.state, job.start_time) == ("poet", JobState.QUEUED, None)
    # What comes back may be sent again.
    client.training.start(job.adapter, **job.spec)
    assert spec_sent(server) == spec


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"colour": "red"}, "colour"),
        ({"hyperparameters": {"epochs": "many"}}, "epochs"),
        ({"promotion": {"mode": "soon"}}, "mode"),
    ],
)
def test_what_the_wire_cannot_carry_is_refused(client: Client, options: dict, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words) as caught:
        client.training.start("poet", **options)
    assert caught.value.field == "spec"


def test_a_job_is_watched_to_its_end(client: Client) -> None:
    job = client.training.start("poet")
    seen = list(client.training.watch(job.id))
    assert [job.state for job in seen] == [
        JobState.QUEUED,
        JobState.RUNNING,
        JobState.SUCCEEDED,
    ]
    progress = seen[1].progress
    assert (progress.phase, progress.step, progress.remaining_s) == ("training", 3, 65)
    assert progress.metrics == {"kl": 0.5}
    assert client.training.wait(job.id).version == "poet@1"
    assert client.training.get(job.id).state is JobState.SUCCEEDED
    report = client.training.report(job.id)
    assert (report.markdown, report.plots) == ("# Passed", {"loss.png": b"PNG"})


def test_lists_page_and_filter(client: Client) -> None:
    jobs = [client.training.start(name) for name in ("a", "b", "a")]
    assert [job.id for job in client.training.list()] == [job.id for job in reversed(jobs)]
    assert [job.adapter for job in client.training.list("a")] == ["a", "a"]
    client.training.cancel(jobs[0].id)
    [cancelled] = client.training.list("", JobState.CANCELLED)
    assert cancelled.id == jobs[0].id


def test_policies(server: FakeServer, client: Client) -> None:
    policies = client.training.policies
    made = policies.create("nightly", "poet", schedule="0 3 * * *", method="LORA")
    assert (made.adapter, made.spec, made.last_start_time) == ("poet", {"method": "LORA"}, None)
    assert policies.update("nightly", paused=True).paused
    assert list(server.requests[-1].update_mask.paths) == ["paused"]
    changed = policies.update("nightly", "prose", min_new_feedback=0, method="IA3")
    assert (changed.adapter, changed.spec) == ("prose", {"method": "IA3"})
    assert set(server.requests[-1].update_mask.paths) == {"min_new_feedback", "spec"}
    with pytest.raises(InvalidArgument, match="adapter"):
        policies.update("nightly", method="IA3")
    with pytest.raises(InvalidArgument, match="min_new_feedback"):
        policies.update("nightly", min_new_feedback=2**40)
    assert [policy.name for policy in policies.list()] == ["nightly"]
    assert policies.get("nightly").schedule == "0 3 * * *"
    policies.delete("nightly")
    assert list(policies.list()) == []


async def test_the_async_client_does_the_same(server: FakeServer, aclient: AsyncClient) -> None:
    training = aclient.training
    job = await training.start("poet", **OPTIONS)
    assert spec_sent(server).promotion.canary_percent == 5
    assert [job.state async for job in training.watch(job.id)][-1] is JobState.SUCCEEDED
    assert (await training.wait(job.id)).state is JobState.SUCCEEDED
    assert (await training.report(job.id)).json == '{"passed": true}'
    assert [found.id async for found in training.list("poet")] == [job.id]
    assert (await training.cancel(job.id)).state is JobState.CANCELLED
    assert (await training.get(job.id)).state is JobState.CANCELLED
    await training.policies.create("p", "poet", min_new_feedback=3)
    assert (await training.policies.update("p", paused=True)).paused
    assert [policy.name async for policy in training.policies.list()] == ["p"]
    assert (await training.policies.get("p")).min_new_feedback == 3
    await training.policies.delete("p")


def test_start_makes_a_spec_of_its_options(server: FakeServer, run: Run, tmp_path: Path) -> None:
    base = tmp_path / "spec.json"
    base.write_text(json.dumps({"method": "IA3", "gate": {"few_shot": 0}}))
    options = (
        "--task a --task b --format sft --recipe sft --method LORA --epochs 2 --max-steps 9"
        " --learning-rate 0.01 --batch-size 4 --seed 5 --no-scrub --search 3 --min-f1 0.5"
        " --promote canary --canary-percent 7 --set dataset.balance=0.5"
        ' --set search.parameters=["rank"] --set hyperparameters.schedule=cosine'
    )
    result = run("start", "poet", "--spec", str(base), *options.split())
    assert (result.stdout, result.exit_code) == ("job-1\n", 0)
    wanted = {
        "adapter": "poet",
        "recipe": "sft",
        "method": "LORA",
        "dataset": {
            "selection": {"tasks": ["a", "b"], "format": "sft"},
            "scrub": False,
            "balance": 0.5,
        },
        "hyperparameters": {
            "epochs": 2,
            "max_steps": 9,
            "learning_rate": 0.01,
            "batch_size": 4,
            "seed": 5,
            "schedule": "cosine",
        },
        "search": {"trials": 3, "parameters": ["rank"]},
        "gate": {"min_f1": 0.5, "few_shot": 0},
        "promotion": {"mode": "MODE_CANARY", "canary_percent": 7},
    }
    assert spec_sent(server) == json_format.ParseDict(wanted, pb.TrainingJobSpec())


def test_watch_tells_phases_and_the_end(server: FakeServer, run: Run) -> None:
    result = run("start", "poet", "--watch")
    assert result.exit_code == 0
    assert result.stderr.split() == ["queued", "training", "succeeded"]
    assert "poet@1" in result.stdout
    server.training.end_state = pb.JOB_STATE_REFUSED
    result = run("watch", "job-1")
    assert result.exit_code == 1
    assert "as it was told" in result.stdout


def test_show_list_cancel(run: Run) -> None:
    run("start", "poet")
    assert "queued" in run("show", "job-1").stdout
    assert json.loads(run("show", "job-1", "--json").stdout)["state"] == "queued"
    assert "job-1" in run("list").stdout
    assert json.loads(run("list", "prose", "--json").stdout) == []
    assert json.loads(run("list", "--state", "queued", "--json").stdout)[0]["adapter"] == "poet"
    assert "cancelled" in run("cancel", "job-1").stdout


def test_report_prints_or_writes(run: Run, tmp_path: Path) -> None:
    assert run("report", "job-1").stdout == "# Passed\n"
    assert json.loads(run("report", "job-1", "--json").stdout) == {"passed": True}
    folder = tmp_path / "report"
    assert run("report", "job-1", "--output", str(folder)).exit_code == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        "loss.png",
        "report.json",
        "report.md",
    ]


def test_policies_on_the_command_line(server: FakeServer, run: Run) -> None:
    made = run("policies", "create", "p", "poet", "--every", "50", "--method", "LORA")
    assert "50 items" in made.stdout
    assert server.training.policies["p"].spec.method == "LORA"
    assert "p" in run("policies", "list").stdout
    assert "yes" in run("policies", "pause", "p").stdout
    assert "no" in run("policies", "resume", "p").stdout
    assert "0 3 * * *" in run("policies", "update", "p", "--schedule", "0 3 * * *").stdout
    assert json.loads(run("policies", "show", "p", "--json").stdout)["min_new_feedback"] == 50
    assert run("policies", "delete", "p").stdout == "p deleted\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["start", "poet", "--set", "nonsense"], "FIELD=VALUE"),
        (["start", "poet", "--set", "method.x=1", "--method", "LORA"], "has no fields"),
        (["start", "poet", "--set", "colour=red"], "colour"),
        (["start", "poet", "--spec", "/nowhere.json"], "cannot read"),
        (["start", "poet", "--promote", "soon"], "--promote"),
    ],
)
def test_mistakes_are_explained(run: Run, args: list[str], message: str) -> None:
    result = run(*args)
    assert result.exit_code != 0
    assert message in result.stderr
