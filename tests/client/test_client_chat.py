import signal
import threading
import time
from collections.abc import Iterator

import pytest
from click.testing import CliRunner, Result
from graftwork.cli import main
from graftwork.status import InvalidFieldError
from graftwork.v1 import generation_service_pb2 as pb

from tests.client.fake_server import FakeServer

CONFIG = {"adapter_config.json": b"{}"}


@pytest.fixture
def talk(server: FakeServer):
    server.add_version("poet", CONFIG)
    server.add_version("coder", CONFIG)
    server.add_version("coder", CONFIG)

    def run(*lines: str, args: tuple[str, ...] = ()) -> Result:
        arguments = ["--target", server.target, "chat", *args]
        result = CliRunner().invoke(main, arguments, input="\n".join(lines) + "\n")
        assert result.exception is None or isinstance(result.exception, SystemExit), result
        return result

    return run


def turns(request) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in request.conversation.messages]


def requests(server: FakeServer) -> list:
    """Each request once: the fake records the end of a stream too."""
    return server.requests_of(pb.GenerateRequest)[::2]


def test_the_adapter_changes_in_mid_chat(server: FakeServer, talk) -> None:
    result = talk("one", "/adapter poet", "two", "/adapter coder@2", "three", "/adapter", "four")
    assert result.stdout.splitlines() == [
        "base: one",
        "poet@1: two",
        "coder@2: three",
        "base: four",
    ]
    assert result.exit_code == 0
    sent = requests(server)
    assert [request.adapter for request in sent] == ["", "poet", "coder@2", ""]
    assert turns(sent[-1]) == [
        ("user", "one"),
        ("assistant", "base: one"),
        ("user", "two"),
        ("assistant", "poet@1: two"),
        ("user", "three"),
        ("assistant", "coder@2: three"),
        ("user", "four"),
    ]
    assert len({request.episode_id for request in sent}) == 1
    assert sent[0].episode_id


def test_several_adapters_in_mid_chat(server: FakeServer, talk) -> None:
    result = talk(
        "/adapter poet:0.5 coder@2:2", "one", "/adapter poet:x", "two", "/adapter nobody:1"
    )
    assert "the weight is not a number" in result.stderr
    assert "'nobody' is not known" in result.stderr
    for request in requests(server):
        assert {a.adapter: a.weight for a in request.adapters} == {"poet": 0.5, "coder@2": 2}


def test_an_unknown_adapter_changes_nothing(talk) -> None:
    result = talk("/adapter poet", "/adapter nobody", "/adapter coder@9", "hi", "/quit", "never")
    assert result.stdout == "poet@1: hi\n"
    assert "error: adapter 'nobody' is not known" in result.stderr
    assert "error: version 9 of 'coder' is not known" in result.stderr
    assert result.exit_code == 1


def test_system_reset_and_params(server: FakeServer, talk) -> None:
    result = talk(
        "/system be brief",
        "/params temperature=0.5 max-tokens=2",
        "one",
        "/params",
        "/params temperature=",
        "/reset",
        "/system",
        "two three four",
        args=("--seed", "3", "--no-store"),
    )
    assert result.stdout.splitlines() == ["base: one", "base: two"]
    assert "seed=3 temperature=0.5 max_tokens=2" in result.stderr
    first, second = requests(server)
    assert turns(first) == [("system", "be brief"), ("user", "one")]
    assert turns(second) == [("user", "two three four")]
    assert first.sampling == pb.SamplingParams(temperature=0.5, seed=3)
    assert second.sampling == pb.SamplingParams(seed=3)
    assert (first.store, first.max_tokens) == (False, 2)
    assert first.episode_id != second.episode_id


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nonsense", "/nonsense is not a command; /help lists them"),
        ("/params hot=1", "hot=1: KEY=VALUE is wanted"),
        ("/params temperature", "temperature: KEY=VALUE is wanted"),
        ("/params temperature=hot", "temperature: 'hot' is not a valid float"),
    ],
)
def test_bad_commands(talk, line: str, message: str) -> None:
    result = talk(line, "hi")
    assert message in result.stderr
    assert (result.stdout, result.exit_code) == ("base: hi\n", 1)


def test_help(talk) -> None:
    result = talk("/help")
    for command in ("/adapter", "/system", "/params", "/reset", "/help", "/quit"):
        assert command in result.stderr


def test_a_failed_turn_is_forgotten(server: FakeServer, talk) -> None:
    server.failures["StreamGenerate"] = [InvalidFieldError("sampling.top_p", "must be in (0, 1]")]
    result = talk("one", "two", args=("--top-p", "2"))
    assert result.stderr == "error: --top-p: must be in (0, 1]\n"
    assert result.stdout == "base: two\n"
    assert turns(server.requests_of(pb.GenerateRequest)[1]) == [("user", "two")]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as at a terminal: a process that a script started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_stops_the_answer_not_the_chat(server: FakeServer, talk) -> None:
    server.endless = True
    server.token_delay_s = 0.02

    def interrupt() -> None:
        server.tenth_token.wait(10)
        time.sleep(0.1)  # for the first of them to have come
        server.endless = False
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    result = talk("one", "two")
    thread.join()
    first, second = result.stdout.splitlines()
    assert first.startswith("base: one")
    assert second == "base: two"
    assert "stopped" in result.stderr
    assert result.exit_code == 0
    last = turns(server.requests_of(pb.GenerateRequest)[-1])
    assert last == [("user", "one"), ("assistant", first), ("user", "two")]
