import threading
import uuid

import graftwork
import grpc
import pytest
from graftwork import Client, FinishReason, Message
from graftwork.channel import Connection
from graftwork.status import InvalidFieldError, WireError
from graftwork.v1 import generation_service_pb2 as pb

from tests.client.fake_server import BASE_DIGEST, FakeServer


class QueueFullError(WireError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "QUEUE_FULL"


class DrainingError(WireError):
    code = grpc.StatusCode.UNAVAILABLE
    reason = "DRAINING"


def wire_error(status: grpc.StatusCode) -> WireError:
    kind = type("AnyError", (WireError,), {"code": status, "reason": "ANY"})
    return kind("why")


def test_generate(server: FakeServer, client: Client) -> None:
    server.add_version("poet", {"adapter_config.json": b"{}"})
    answer = client.generate(
        "hello there", adapter="poet", temperature=0.5, seed=3, n=2, logprobs=1
    )
    assert answer.text == "poet@1: hello there"
    assert str(answer.served_by) == "poet@1"
    assert answer.served_by.base_digest == BASE_DIGEST
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].finish_reason is FinishReason.STOP
    assert answer.choices[0].logprobs[0].top[0].token == "x"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    assert answer.create_time.isoformat() == "2023-11-14T22:13:20+00:00"
    assert answer.seed == 3
    assert server.requests[-1].sampling == pb.SamplingParams(temperature=0.5, seed=3)


def test_results_are_frozen(client: Client) -> None:
    answer = client.generate([Message("user", "hi")], max_tokens=1)
    assert answer.choices[0].finish_reason is FinishReason.LENGTH
    with pytest.raises(AttributeError):
        answer.seed = 1  # type: ignore[misc]


def test_a_stream_makes_up_what_generate_returns(client: Client) -> None:
    stream = client.stream("a b c", n=2, logprobs=1)
    texts = {0: "", 1: ""}
    for delta in stream:
        texts[delta.index] += delta.text
    assert texts == {0: "base: a b c", 1: "base: a b c"}
    whole = client.generate("a b c", n=2, logprobs=1)
    streamed = stream.result
    assert [choice.text for choice in streamed.choices] == [choice.text for choice in whole.choices]
    assert streamed.choices[0].finish_reason is FinishReason.STOP
    assert len(streamed.choices[1].logprobs) == 4
    assert (streamed.usage, streamed.served_by) == (whole.usage, whole.served_by)
    assert streamed.create_time == whole.create_time


def test_result_before_anything_arrived(client: Client) -> None:
    with client.stream("a") as stream, pytest.raises(RuntimeError, match="nothing"):
        stream.result  # noqa: B018


def test_closing_a_stream_cancels_it_on_the_server(server: FakeServer, client: Client) -> None:
    server.endless = True
    with client.stream("a b") as stream:
        first = [next(stream).text for _ in range(3)]
        assert first == ["base:", " a", " b"]
        assert not server.stream_cancelled.is_set()
    assert server.stream_cancelled.wait(5)
    assert list(stream) == []
    assert stream.result.choices[0].finish_reason is None
    assert stream.result.usage is None


def test_dropping_a_stream_cancels_it_on_the_server(server: FakeServer, client: Client) -> None:
    server.endless = True
    for _ in client.stream("a b"):
        break
    assert server.stream_cancelled.wait(5)


def test_closing_a_stream_from_another_thread_ends_it(server: FakeServer, client: Client) -> None:
    server.endless = True
    stream = client.stream("a b")
    next(stream)
    threading.Timer(0.1, stream.close).start()
    assert sum(1 for _ in stream) > 0


def test_an_error_in_the_middle_of_a_stream(server: FakeServer, client: Client) -> None:
    server.failures["EndOfStream"] = [wire_error(grpc.StatusCode.INTERNAL)]
    stream = client.stream("a b")
    with pytest.raises(graftwork.Internal):
        list(stream)
    assert stream.result.text == "base: a b"


def test_score_tokenize_and_model(client: Client) -> None:
    result = client.score("two plus two is", ["four", "a fish", [5, 6, 7]])
    assert [score.total_logprob for score in result.scores] == [-0.5, -1.0, -1.5]
    assert client.tokenize("a b").tokens == ("a", " b")
    assert client.tokenize([Message("user", "a b")]).text == "a b"
    model = client.model()
    assert (model.name, model.limits.max_context_tokens) == ("echo", 8192)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, graftwork.InvalidArgument),
        (grpc.StatusCode.NOT_FOUND, graftwork.NotFound),
        (grpc.StatusCode.FAILED_PRECONDITION, graftwork.FailedPrecondition),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, graftwork.ResourceExhausted),
        (grpc.StatusCode.UNAVAILABLE, graftwork.Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, graftwork.DeadlineExceeded),
        (grpc.StatusCode.CANCELLED, graftwork.Cancelled),
        (grpc.StatusCode.PERMISSION_DENIED, graftwork.PermissionDenied),
        (grpc.StatusCode.UNAUTHENTICATED, graftwork.PermissionDenied),
        (grpc.StatusCode.INTERNAL, graftwork.Internal),
        (grpc.StatusCode.ABORTED, graftwork.GraftworkError),
    ],
)
def test_statuses_become_errors(server: FakeServer, client: Client, status, expected) -> None:
    server.failures["Generate"] = [wire_error(status)]
    with pytest.raises(expected, match="why") as caught:
        client.generate("hi")
    assert type(caught.value) is expected
    assert (caught.value.code, caught.value.reason) == (status, "ANY")
    assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_an_invalid_field_is_named(server: FakeServer, client: Client) -> None:
    server.failures["StreamGenerate"] = [InvalidFieldError("sampling.top_p", "must be in (0, 1]")]
    with pytest.raises(graftwork.InvalidArgument) as caught:
        next(client.stream("hi", top_p=2))
    assert caught.value.field == "sampling.top_p"
    assert str(caught.value) == "sampling.top_p: must be in (0, 1]"


def test_a_full_queue_says_when_to_retry(server: FakeServer, client: Client) -> None:
    server.failures["Generate"] = [QueueFullError("the queue is full", retry_after_s=1.5)]
    with pytest.raises(graftwork.ResourceExhausted) as caught:
        client.generate("hi")
    assert caught.value.retry_after_s == 1.5


def test_an_unknown_adapter(client: Client) -> None:
    with pytest.raises(graftwork.NotFound, match="'nobody' is not known"):
        client.generate("hi", adapter="nobody")


def test_no_server() -> None:
    with Client("localhost:1") as client, pytest.raises(graftwork.Unavailable):
        client.generate("hi")


def test_timeouts(server: FakeServer) -> None:
    server.token_delay_s = 0.2
    with Client(server.target, timeout=0.1) as client:
        with pytest.raises(graftwork.DeadlineExceeded):
            list(client.stream("a b c d"))
        assert len(list(client.stream("a", timeout=5))) == 3


def test_reads_are_retried_and_generate_is_not(server: FakeServer, client: Client) -> None:
    draining = DrainingError("draining")
    server.failures = {"GetModel": [draining, draining], "Generate": [draining]}
    assert client.model().name == "echo"
    with pytest.raises(graftwork.Unavailable):
        client.generate("hi")
    assert len(server.requests_of(pb.GetModelRequest)) == 3
    assert len(server.requests_of(pb.GenerateRequest)) == 1


def test_every_call_carries_the_metadata(server: FakeServer) -> None:
    with Client(server.target, metadata={"Authorization": "Bearer key"}) as client:
        client.model()
        list(client.stream("hi"))
    assert all(sent["authorization"] == "Bearer key" for sent in server.metadata)


def test_half_a_key_pair_is_refused() -> None:
    with pytest.raises(graftwork.InvalidArgument, match="together"):
        Client(client_cert=b"cert")


def test_credentials_follow_from_what_is_given() -> None:
    def connection(**given) -> Connection:
        defaults = {"tls": False, "ca": None, "client_cert": None, "client_key": None}
        return Connection.of("x", **(defaults | given), timeout=None, metadata=None)

    assert connection().credentials is None
    assert connection(tls=True).credentials is not None
    with pytest.raises(FileNotFoundError):
        connection(ca="/nowhere/ca.pem")


def test_mutations_carry_a_request_id(server: FakeServer, client: Client) -> None:
    client.adapters.create("poet", "poet/")
    client.adapters.create("poet", "poet/", request_id="mine")
    client.adapters.update("poet", pinned=True)
    client.adapters.rollback("poet")
    client.adapters.delete("poet@2")
    ids = [request.request_id for request in server.requests]
    assert ids[1] == "mine"
    assert len(set(ids)) == 5
    uuid.UUID(ids[0])
