import json
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result
from graftwork.cli import main
from graftwork.status import InvalidFieldError, WireError
from graftwork.v1 import adapter_service_pb2 as adapter_pb
from graftwork.v1 import generation_service_pb2 as pb

from tests.client.fake_server import FakeServer

CONFIG = {"adapter_config.json": b"{}"}
Run = Callable[..., Result]


@pytest.fixture
def run(server: FakeServer) -> Run:
    def invoke(*args: str, input: str | bytes | None = None) -> Result:  # noqa: A002
        result = CliRunner().invoke(main, ["--target", server.target, *args], input=input)
        assert result.exception is None or isinstance(result.exception, SystemExit), result
        return result

    return invoke


def test_generate_prints_the_answer(run: Run) -> None:
    result = run("generate", "hello there")
    assert (result.stdout, result.stderr, result.exit_code) == ("base: hello there\n", "", 0)


def test_generate_passes_every_option(server: FakeServer, run: Run) -> None:
    server.add_version("poet", CONFIG)
    options = (
        "--adapter poet@1 --max-tokens 9 --min-tokens 1 --temperature 0.5 --top-p 0.25 --top-k 3"
        " --min-p 0.125 --repetition-penalty 1.5 --presence-penalty 1 --frequency-penalty -1"
        " --seed 5 --priority 2 --stop END --stop X --stop-token-id 7 --ignore-eos"
        " --logit-bias 7=-2.5 --regex a+ -n 1 --episode-id e --no-store"
        " --prompt-lookup-tokens 4"
    )
    assert run("generate", "hi", *options.split()).exit_code == 0
    assert server.requests[0] == pb.GenerateRequest(
        adapter="poet@1",
        text="hi",
        sampling=pb.SamplingParams(
            temperature=0.5,
            top_p=0.25,
            top_k=3,
            min_p=0.125,
            repetition_penalty=1.5,
            presence_penalty=1,
            frequency_penalty=-1,
            seed=5,
            logit_bias={7: -2.5},
        ),
        max_tokens=9,
        min_tokens=1,
        stop=["END", "X"],
        stop_token_ids=[7],
        ignore_eos=True,
        n=1,
        constraint=pb.Constraint(regex="a+"),
        priority=2,
        episode_id="e",
        store=False,
        prompt_lookup_tokens=4,
    )


def test_generate_combines_adapters(server: FakeServer, run: Run) -> None:
    options = "--adapter poet:0.75 -a coder@2:-0.25 -a plain --adapter-scale 0.5"
    assert run("generate", "hi", *options.split()).exit_code == 0
    expected = {"poet": 0.75, "coder@2": -0.25, "plain": 1}
    assert {part.adapter: part.weight for part in server.requests[0].adapters} == expected
    assert (server.requests[0].adapter, server.requests[0].adapter_scale) == ("", 0.5)
    run("score", "a", "b", *options.split())
    assert {part.adapter: part.weight for part in server.requests[-1].adapters} == expected


@pytest.mark.parametrize("words", [["-a", "poet:much"], ["-a", "poet", "-a", "poet:2"]])
def test_adapters_that_make_no_sense(server: FakeServer, run: Run, words: list[str]) -> None:
    result = run("generate", "hi", *words)
    assert result.exit_code == 2
    assert "poet" in result.stderr
    assert server.requests == []


def test_generate_without_options_sets_nothing(server: FakeServer, run: Run) -> None:
    run("generate", "hi")
    assert server.requests[0] == pb.GenerateRequest(text="hi")


def test_generate_reads_stdin(run: Run) -> None:
    assert run("generate", "-", input="from\nstdin\n").stdout == "base: from\nstdin\n"
    broken = run("generate", "-", input=b"\xff\xfe")
    assert (broken.exit_code, broken.stderr) == (1, "error: the input is not UTF-8\n")


def test_generate_with_the_chat_template(server: FakeServer, run: Run) -> None:
    run("generate", "hi", "--system", "be brief")
    run("generate", "hi", "--chat")
    turns = [
        [(message.role, message.content) for message in request.conversation.messages]
        for request in server.requests_of(pb.GenerateRequest)
    ]
    assert turns[0] == [("system", "be brief"), ("user", "hi")]
    assert turns[-1] == [("user", "hi")]


def test_generate_json(run: Run) -> None:
    answer = json.loads(run("generate", "hi", "--json", "--logprobs", "1").stdout)
    assert answer["choices"][0]["text"] == "base: hi"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["logprobs"][0]["top"][0]["token"] == "x"
    assert answer["create_time"] == "2023-11-14T22:13:20+00:00"


def test_generate_several(run: Run) -> None:
    assert run("generate", "hi", "-n", "2").stdout == "[0]\nbase: hi\n[1]\nbase: hi\n"


def test_constraints(server: FakeServer, run: Run, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}', encoding="utf-8")
    assert run("generate", "hi", "--json-schema", f"@{schema}").exit_code == 0
    assert server.requests[0].constraint.json_schema == '{"type": "object"}'
    run("generate", "hi", "--choice", "yes", "--choice", "no")
    assert server.requests[-1].constraint.choice.values == ["yes", "no"]
    both = run("generate", "hi", "--choice", "yes", "--regex", "a")
    assert (both.exit_code, both.stderr) == (
        1,
        "error: constraint: regex and choice exclude one another\n",
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["generate"], "Missing argument 'PROMPT'"),
        (["generate", "hi", "--temperature", "hot"], "'hot' is not a valid float"),
        (["generate", "hi", "--json-schema", "{"], "not JSON"),
        (["generate", "hi", "--json-schema", "@nowhere.json"], "cannot read nowhere.json"),
        (["generate", "hi", "--logit-bias", "7"], "'7' is not ID=BIAS"),
        (["generate", "hi", "--logprobs", "1"], "with --json only"),
        (["adapters", "promote", "poet"], "NAME@VERSION is wanted"),
        (["adapters", "split", "poet"], "either shares"),
        (["adapters", "split", "poet", "1=90", "--end"], "either shares"),
        (["adapters", "split", "poet", "1=9.5"], "not VERSION=PERCENT"),
        (["adapters", "upload", "poet", "nowhere"], "does not exist"),
        (["--timeout", "0", "model"], "not in the range"),
        (["--key", __file__, "model"], "go together"),
        (["nonsense"], "No such command 'nonsense'"),
    ],
)
def test_usage_errors(run: Run, args: list[str], message: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert message in result.stderr


def test_an_error_names_the_option(server: FakeServer, run: Run) -> None:
    server.failures["StreamGenerate"] = [InvalidFieldError("sampling.top_p", "must be in (0, 1]")]
    result = run("generate", "hi", "--top-p", "2")
    assert (result.exit_code, result.stderr) == (1, "error: --top-p: must be in (0, 1]\n")


def test_an_error_without_an_option_names_the_field(server: FakeServer, run: Run) -> None:
    server.failures["StreamGenerate"] = [InvalidFieldError("text", "9000 tokens, at most 8192")]
    assert run("generate", "hi").stderr == "error: text: 9000 tokens, at most 8192\n"


def test_errors_say_what_to_do(server: FakeServer, run: Run) -> None:
    full = type("Full", (WireError,), {"code": grpc.StatusCode.RESOURCE_EXHAUSTED})
    server.failures["StreamGenerate"] = [full("the queue\nis full\x1b[2J", retry_after_s=1.5)]
    assert run("generate", "hi").stderr == ("error: the queue is full [2J (try again in 1.5 s)\n")
    assert run("generate", "hi", "-a", "nobody").stderr == (
        "error: adapter 'nobody' is not known (`graftwork adapters list` shows what there is)\n"
    )
    server.token_delay_s = 0.5
    assert run("--timeout", "0.1", "generate", "hi").stderr == (
        "error: no answer within 0.1 s (--timeout gives it longer)\n"
    )


def test_an_error_in_the_middle_ends_the_line(server: FakeServer, run: Run) -> None:
    server.failures["EndOfStream"] = [WireError("internal error")]
    result = run("generate", "hi")
    assert (result.stdout, result.stderr) == ("base: hi\n", "error: internal error\n")
    assert result.exit_code == 1


def test_no_server() -> None:
    result = CliRunner().invoke(main, ["--target", "localhost:1", "model"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: cannot reach localhost:1: ")
    assert "start a server with `graftwork serve`" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_target_may_come_from_the_environment(server: FakeServer) -> None:
    result = CliRunner(env={"GRAFTWORK_TARGET": server.target}).invoke(main, ["model"])
    assert "EchoForCausalLM" in result.stdout


def test_score(run: Run) -> None:
    lines = run("score", "two plus two is", "four", "a fish").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["logprob", "per", "token", "tokens", "completion"],
        ["-0.500", "-0.500", "1", "four"],
        ["-1.000", "-0.500", "2", "a", "fish"],
    ]
    scores = json.loads(run("score", "a", "b", "--json").stdout)["scores"]
    assert scores[0]["total_logprob"] == -0.5


def test_tokenize(run: Run) -> None:
    assert run("tokenize", "a b").stdout.split() == ["id", "token", "0", "'a'", "1", "'", "b'"]
    assert json.loads(run("tokenize", "a b", "--json").stdout)["token_ids"] == [0, 1]
    assert run("tokenize", "").stderr == "error: TEXT: is empty\n"


def test_model(run: Run) -> None:
    assert "134,515,008" in run("model").stdout
    assert json.loads(run("model", "--json").stdout)["limits"]["max_n"] == 16


def test_adapters_round_trip(run: Run, peft_folder: Path, tmp_path: Path) -> None:
    uploaded = run("adapters", "upload", "poet", str(peft_folder))
    assert "poet@1" in uploaded.stdout
    assert "2.6 MB" in uploaded.stdout
    target = tmp_path / "copy"
    assert run("adapters", "download", "poet", str(target)).stdout == f"poet@1 -> {target}\n"
    name = "adapter_model.safetensors"
    assert (target / name).read_bytes() == (peft_folder / name).read_bytes()
    again = run("adapters", "download", "poet", str(target))
    assert again.stderr == f"error: already there, and not an empty folder: {target}\n"


def test_a_download_that_leads_out(server: FakeServer, run: Run, tmp_path: Path) -> None:
    server.add_version("poet", {"../evil": b"evil"})
    result = run("adapters", "download", "poet", str(tmp_path / "copy"))
    assert result.exit_code == 1
    assert "not a plain name" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_adapters_move(server: FakeServer, run: Run) -> None:
    run("adapters", "create", "poet", "poet/v1")
    run("adapters", "create", "poet", "poet/v2", "--no-live")
    assert server.adapters["poet"].live_version == 1
    split = run("adapters", "split", "poet", "1=90", "2=10")
    assert "1=90% 2=10%" in split.stdout
    promoted = json.loads(run("adapters", "promote", "poet@2", "--json").stdout)
    assert (promoted["live_version"], promoted["traffic_split"]) == (2, {})
    assert "live     1" in run("adapters", "rollback", "poet").stdout
    run("adapters", "split", "poet", "1=50", "2=50")
    assert "split" not in run("adapters", "split", "poet", "--end").stdout
    assert "yes" in run("adapters", "pin", "poet").stdout
    assert json.loads(run("adapters", "unpin", "poet", "--json").stdout)["pinned"] is False
    assert "device" in run("adapters", "load", "poet@2").stdout
    assert "disk" in run("adapters", "unload", "poet@2").stdout
    assert run("adapters", "delete", "poet@2").stdout == "poet@2 deleted\n"
    assert server.requests_of(adapter_pb.DeleteAdapterVersionRequest)[0].adapter == "poet@2"


def test_adapters_lists(server: FakeServer, run: Run) -> None:
    for name in ("coder", "poet"):
        server.add_version(name, CONFIG)
    server.adapters["poet"].traffic_split.add(version=1, percent=100)
    names = [line.split()[0] for line in run("adapters", "list").stdout.splitlines()]
    assert names == ["name", "coder", "poet"]
    listed = json.loads(run("adapters", "list", "--json").stdout)
    assert listed[1]["traffic_split"] == {"1": 100}
    assert "poet" in run("adapters", "get", "poet").stdout
    versions = run("adapters", "versions", "poet").stdout.splitlines()
    assert versions[1].split()[:2] == ["poet@1", "LORA"]
    assert len(json.loads(run("adapters", "versions", "--json").stdout)) == 2


def test_help_lists_everything(run: Run) -> None:
    result = CliRunner().invoke(main, ["adapters", "--help"])
    for name in [
        "list",
        "get",
        "versions",
        "create",
        "upload",
        "download",
        "delete",
        "promote",
        "split",
        "pin",
        "unpin",
        "rollback",
        "load",
        "unload",
    ]:
        assert f"  {name} " in result.stdout
