"""A fault in a request is told by name, costs the others nothing, and leaves nothing taken."""

import asyncio
import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import torch
from graftwork.status import details_of
from graftwork.v1 import adapter_service_pb2 as adapter_pb
from graftwork.v1 import generation_service_pb2 as pb
from graftwork.v1.adapter_service_pb2_grpc import AdapterServiceStub
from graftwork.v1.generation_service_pb2_grpc import GenerationServiceStub
from graftwork_adapters.folder import CONFIG_FILE, WEIGHTS_FILE
from graftwork_adapters.stamp import stamp_folder
from safetensors.torch import load_file, save_file

from tests.support.peft_adapters import lora_config, save_random_adapter
from tests.support.saved_models import CONTEXT, load_reference, save_tiny_model
from tests.support.server import ServerUnderTest, serving, tiny_settings, until
from tests.support.tiny_serving import (
    PROMPT,
    TinyBase,
    ask,
    one_torch_thread,
    tiny_base,
    tokens_of,
)

__all__ = ["one_torch_thread", "tiny_base"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
NOT_FOUND = grpc.StatusCode.NOT_FOUND
DENIED = grpc.StatusCode.PERMISSION_DENIED
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
MAX_RANK = 8


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(
    tiny_base: TinyBase, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ServerUnderTest]:
    folder = tmp_path_factory.mktemp("server")
    roots = [str(tiny_base.folder), str(folder / "root")]
    (folder / "root").mkdir()
    settings = tiny_settings(
        folder, tiny_base.model, adapters={"roots": roots, "max_rank": MAX_RANK}
    )
    async with serving(settings) as server:
        await server.client.adapters.create("good", tiny_base.adapter(1))
        await ask(server, "good")
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def harmless(running: ServerUnderTest) -> AsyncIterator[ServerUnderTest]:
    """The server, with streams that run on it and must not notice what the test does."""
    names = ("", "good")
    expected = [tokens_of(await ask(running, name, 30)) for name in names]
    before = holdings(running)
    streams = [asyncio.create_task(ask(running, name, 30)) for name in names]
    await until(lambda: running.server.dispatcher.num_in_flight)
    yield running
    assert [tokens_of(await stream) for stream in streams] == expected
    await running.check_idle()
    assert holdings(running) == before


def holdings(running: ServerUnderTest) -> tuple[object, ...]:
    registry, slots = running.server.registry, running.server.scheduler.slots
    store = registry._store
    return (
        sorted(slots.resident_digests),
        sorted(store.digests()),
        registry.list_versions(page_size=1000).items,
        len(running.server.dispatcher._streams),
    )


def generate_request(**fields: Any) -> pb.GenerateRequest:
    """A good request, then the fields."""
    if not fields.keys() & {"text", "token_ids", "conversation"}:
        fields["token_ids"] = pb.TokenIds(ids=PROMPT)
    return pb.GenerateRequest(**{"max_tokens": 4, **fields})


async def refused(
    running: ServerUnderTest, call: Callable[[GenerationServiceStub, AdapterServiceStub], Any]
) -> grpc.aio.AioRpcError:
    async with grpc.aio.insecure_channel(running.target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(GenerationServiceStub(channel), AdapterServiceStub(channel))
    assert details_of(caught.value).reason
    return caught.value


def sampling(**fields: Any) -> dict[str, Any]:
    return {"sampling": pb.SamplingParams(**fields)}


def constraint(**fields: Any) -> dict[str, Any]:
    return {"constraint": pb.Constraint(**fields)}


def conversation(*turns: tuple[str, str]) -> dict[str, Any]:
    messages = [pb.Message(role=role, content=content) for role, content in turns]
    return {"conversation": pb.Conversation(messages=messages)}


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"text": ""}, "text"),
    ({"token_ids": pb.TokenIds()}, "token_ids"),
    (conversation(), "conversation.messages"),
    (conversation(("robot", "hello")), "conversation.messages[0].role"),
    ({"token_ids": pb.TokenIds(ids=[1, -1])}, "token_ids.ids[1]"),
    ({"token_ids": pb.TokenIds(ids=[360])}, "token_ids.ids[0]"),
    ({"token_ids": pb.TokenIds(ids=[5] * CONTEXT)}, "token_ids"),
    ({"text": "fox " * CONTEXT}, "text"),
    ({"max_tokens": CONTEXT}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 2**31 - 1}, "max_tokens"),
    ({"min_tokens": 5}, "min_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"prompt_logprobs": 1000}, "prompt_logprobs"),
    ({"priority": 101}, "priority"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop_token_ids": [3, 360]}, "stop_token_ids[1]"),
    ({"episode_id": "e" * 129}, "episode_id"),
    ({"adapter": "good@0"}, "adapter"),
    ({"adapter": "../good"}, "adapter"),
    ({"adapter": "good@one"}, "adapter"),
    (sampling(temperature=-0.1), "sampling.temperature"),
    (sampling(temperature=math.nan), "sampling.temperature"),
    (sampling(temperature=math.inf), "sampling.temperature"),
    (sampling(top_p=0.0), "sampling.top_p"),
    (sampling(top_p=1.5), "sampling.top_p"),
    (sampling(top_k=-1), "sampling.top_k"),
    (sampling(min_p=-0.5), "sampling.min_p"),
    (sampling(min_p=math.nan), "sampling.min_p"),
    (sampling(repetition_penalty=0.0), "sampling.repetition_penalty"),
    (sampling(presence_penalty=2.5), "sampling.presence_penalty"),
    (sampling(frequency_penalty=-3.0), "sampling.frequency_penalty"),
    (sampling(logit_bias={360: 1.0}), "sampling.logit_bias[360]"),
    (sampling(logit_bias={5: 101.0}), "sampling.logit_bias[5]"),
    (constraint(json_schema="{"), "constraint.json_schema"),
    (constraint(json_schema="[]"), "constraint.json_schema"),
    (constraint(json_schema='{"type": "strin"}'), "constraint.json_schema"),
    (constraint(json_schema='{"$ref": "#/nowhere"}'), "constraint.json_schema"),
    (constraint(json_schema="[" * 60_000), "constraint.json_schema"),
    (constraint(regex="(["), "constraint.regex"),
    (constraint(choice=pb.Constraint.Choices()), "constraint.choice.values"),
    (constraint(), "constraint"),
    ({"ignore_eos": True, **constraint(regex="a+")}, "ignore_eos"),
]


@pytest.mark.parametrize(
    ("fields", "field"), BAD_FIELDS, ids=[str(i) for i in range(len(BAD_FIELDS))]
)
async def test_fields_that_are_not_acceptable(
    fields: dict[str, Any], field: str, harmless: ServerUnderTest
) -> None:
    request = generate_request(**fields)
    error = await refused(harmless, lambda stub, _: stub.Generate(request))
    assert (error.code(), details_of(error).field) == (INVALID, field)
    assert field in str(error.details())


async def test_a_grammar_that_becomes_too_costly_ends_its_own_request(
    harmless: ServerUnderTest,
) -> None:
    request = generate_request(**constraint(regex="((a{1000}){1000}){1000}"))
    error = await refused(harmless, lambda stub, _: stub.Generate(request))
    assert error.code() in (INVALID, grpc.StatusCode.ABORTED)
    assert "constraint" in str(error.details())


async def test_a_base_without_an_end_token_serves_all_but_constraints(tmp_path: Path) -> None:
    model = save_tiny_model("llama", tmp_path / "model")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        values = json.loads((model / name).read_text())
        values.pop("eos_token", None)
        (model / name).write_text(json.dumps({**values, "eos_token_id": None}))
    async with serving(tiny_settings(tmp_path, model)) as running:
        assert len(tokens_of(await ask(running))) == 12
        request = generate_request(**constraint(regex="a+"))
        error = await refused(running, lambda stub, _: stub.Generate(request))
        assert (error.code(), details_of(error).field) == (INVALID, "constraint.regex")
        assert "no end token" in str(error.details())
        await running.check_idle()


async def test_no_input_at_all(harmless: ServerUnderTest) -> None:
    error = await refused(harmless, lambda stub, _: stub.Generate(pb.GenerateRequest()))
    assert (error.code(), details_of(error).field) == (INVALID, "input")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "completions"),
        ({"completions": [pb.ScoreRequest.Completion()]}, "completions[0]"),
        ({"completions": [pb.ScoreRequest.Completion(text="x" * 2000)]}, "completions[0]"),
        (
            {"completions": [pb.ScoreRequest.Completion(token_ids=pb.TokenIds(ids=[9999]))]},
            "completions[0].token_ids.ids[0]",
        ),
        ({"completions": [pb.ScoreRequest.Completion(text="x")] * 65}, "completions"),
    ],
)
async def test_scores_that_are_not_acceptable(
    fields: dict[str, Any], field: str, harmless: ServerUnderTest
) -> None:
    request = pb.ScoreRequest(text="The quick", **fields)
    error = await refused(harmless, lambda stub, _: stub.Score(request))
    assert (error.code(), details_of(error).field) == (INVALID, field)


@pytest.mark.parametrize("adapter", ["nobody", "good@7"])
async def test_an_unknown_adapter_is_never_the_base(
    adapter: str, harmless: ServerUnderTest
) -> None:
    calls: list[Callable[[Any, Any], Any]] = [
        lambda stub, _: stub.Generate(generate_request(adapter=adapter)),
        lambda stub, _: stub.StreamGenerate(generate_request(adapter=adapter)).read(),
        lambda stub, _: stub.Score(
            pb.ScoreRequest(
                adapter=adapter, text="a", completions=[pb.ScoreRequest.Completion(text="b")]
            )
        ),
        lambda _, stub: stub.LoadAdapter(adapter_pb.LoadAdapterRequest(adapter=adapter)),
        lambda _, stub: stub.UnloadAdapter(adapter_pb.UnloadAdapterRequest(adapter=adapter)),
    ]
    for call in calls:
        error = await refused(harmless, call)
        assert error.code() is NOT_FOUND
        assert adapter in str(error.details())


async def test_bytes_that_are_no_message(harmless: ServerUnderTest) -> None:
    """A generated stub cannot send a string that is not UTF-8: raw bytes can."""
    text_field = bytes([3 << 3 | 2])
    messages = [text_field + b"\x02\xff\xfe", b"\x0a\x7fshort", b"\xff" * 20]
    async with grpc.aio.insecure_channel(harmless.target) as channel:
        for method in ("Generate", "Score", "Tokenize"):
            for message in messages:
                call = channel.unary_unary(f"/graftwork.v1.GenerationService/{method}")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(message)
                assert caught.value.code() is INVALID, (method, message)
        stream = channel.unary_stream("/graftwork.v1.GenerationService/StreamGenerate")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream(messages[0]).read()
        assert caught.value.code() is INVALID
        assert "UTF-8" in str(caught.value.details())


# Adapters that are not acceptable


@pytest.fixture
def folder(tiny_base: TinyBase, running: ServerUnderTest, tmp_path: Path) -> Path:
    """A good adapter in a folder under a root, for a test to damage."""
    path = store_root(running).parents[1] / "root" / tmp_path.name
    shutil.copytree(tiny_base.adapter(2), path)
    return path


def store_root(running: ServerUnderTest) -> Path:
    return running.server.registry._store._staging.parent


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def truncate(folder: Path) -> None:
    os.truncate(folder / WEIGHTS_FILE, (folder / WEIGHTS_FILE).stat().st_size // 2)


def lie_about_the_header(folder: Path) -> None:
    data = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes((2**62).to_bytes(8, "little") + data[8:])


def put_nan(folder: Path) -> None:
    edit_weights(folder, lambda tensors: next(iter(tensors.values())).view(-1)[1].fill_(math.nan))


def pickle_the_weights(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS_FILE), folder / "adapter_model.bin")
    (folder / WEIGHTS_FILE).unlink()


def pickle_under_the_right_name(folder: Path) -> None:
    pickle_the_weights(folder)
    (folder / "adapter_model.bin").rename(folder / WEIGHTS_FILE)


def zero(folder: Path) -> None:
    edit_weights(folder, lambda ts: [t.zero_() for name, t in ts.items() if "lora_B" in name])


def link_out(folder: Path) -> None:
    secret = folder.parents[1] / "secret.safetensors"
    shutil.copy(folder / WEIGHTS_FILE, secret)
    (folder / WEIGHTS_FILE).unlink()
    (folder / WEIGHTS_FILE).symlink_to(secret)


def change_arithmetic(folder: Path) -> None:
    edit_config(folder, use_qalora=True)


def stamp_with_another_base(folder: Path) -> None:
    stamp_folder(folder, "sha256:" + "a" * 64)


def add_a_layer(folder: Path) -> None:
    """Layer 7 of a base with two, and a config that targets it by the same names."""
    edit_weights(
        folder,
        lambda ts: ts.update({n.replace("layers.1", "layers.7"): t.clone() for n, t in ts.items()}),
    )


def miscount_virtual_tokens(folder: Path) -> None:
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5, "token_dim": 64}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    save_file({"prompt_embeddings": torch.ones(4, 64)}, folder / WEIGHTS_FILE)


BAD_FOLDERS: list[tuple[Callable[[Path], None], grpc.StatusCode, str, str]] = [
    (truncate, INVALID, "INVALID_ARTIFACT", WEIGHTS_FILE),
    (lie_about_the_header, INVALID, "INVALID_ARTIFACT", WEIGHTS_FILE),
    (put_nan, INVALID, "INVALID_ARTIFACT", "NaN"),
    (pickle_the_weights, INVALID, "INVALID_ARTIFACT", "pickle"),
    (pickle_under_the_right_name, INVALID, "INVALID_ARTIFACT", WEIGHTS_FILE),
    (zero, INVALID, "ZERO_EFFECT", "changes nothing"),
    (link_out, DENIED, "PATH_NOT_ALLOWED", "outside"),
    (change_arithmetic, INVALID, "UNSUPPORTED_FIELD", "use_qalora"),
    (stamp_with_another_base, PRECONDITION, "WRONG_BASE", "base"),
    (
        lambda path: edit_config(path, peft_type="NONSENSE"),
        INVALID,
        "UNSUPPORTED_METHOD",
        "NONSENSE",
    ),
    (
        lambda path: edit_config(path, peft_type="XLORA"),
        INVALID,
        "UNSUPPORTED_METHOD",
        "LOKR, LORA",
    ),
    (lambda path: edit_config(path, r=5), INVALID, "INVALID_ARTIFACT", "rank 4, but"),
    (
        lambda path: edit_config(path, target_modules=["q_proj"]),
        INVALID,
        "INVALID_ARTIFACT",
        "down_proj",
    ),
    (add_a_layer, PRECONDITION, "WRONG_BASE", "layers.7"),
    (miscount_virtual_tokens, INVALID, "INVALID_ARTIFACT", "num_virtual_tokens"),
    (lambda path: (path / CONFIG_FILE).write_text("{"), INVALID, "INVALID_ARTIFACT", CONFIG_FILE),
    (lambda path: (path / CONFIG_FILE).unlink(), INVALID, "INVALID_ARTIFACT", CONFIG_FILE),
]


@pytest.mark.parametrize(
    ("damage", "code", "reason", "named"),
    BAD_FOLDERS,
    ids=[getattr(case[0], "__name__", "") + str(i) for i, case in enumerate(BAD_FOLDERS)],
)
@pytest.mark.parametrize("by_upload", [False, True], ids=["path", "upload"])
async def test_adapters_that_are_damaged(
    damage: Callable[[Path], None],
    code: grpc.StatusCode,
    reason: str,
    named: str,
    by_upload: bool,
    folder: Path,
    harmless: ServerUnderTest,
) -> None:
    damage(folder)
    messages = upload_messages(folder)
    if not by_upload:
        request = adapter_pb.CreateAdapterVersionRequest(adapter="bad", source=str(folder))
        error = await refused(harmless, lambda _, stub: stub.CreateAdapterVersion(request))
    elif damage is link_out:
        pytest.skip("an upload has no links")
    elif damage is pickle_the_weights:
        error = await refused(harmless, lambda _, stub: upload(stub, messages))
        named = "adapter_model.bin"
    else:
        error = await refused(harmless, lambda _, stub: upload(stub, messages))
    assert (error.code(), details_of(error).reason) == (
        code,
        reason,
    ) or damage is pickle_the_weights
    assert named in str(error.details())
    assert str(folder.parents[1]) not in str(error.details()) or not by_upload
    error = await refused(harmless, lambda stub, _: stub.Generate(generate_request(adapter="bad")))
    assert error.code() is NOT_FOUND
    await until(lambda: not list((store_root(harmless) / "staging").iterdir()))


def upload_messages(folder: Path) -> list[adapter_pb.UploadAdapterVersionRequest]:
    Request = adapter_pb.UploadAdapterVersionRequest
    chunks = [
        adapter_pb.FileChunk(filename=path.name, data=path.read_bytes())
        for path in sorted(folder.iterdir())
        if path.name != "README.md"
    ]
    header = Request(header=Request.Header(adapter="bad"))
    return [header, *(Request(chunk=chunk) for chunk in chunks)]


async def upload(
    stub: AdapterServiceStub, messages: list[adapter_pb.UploadAdapterVersionRequest]
) -> adapter_pb.AdapterVersion:
    return await stub.UploadAdapterVersion(iter(messages))


async def test_a_rank_over_the_cap(
    tiny_base: TinyBase, folder: Path, harmless: ServerUnderTest
) -> None:
    path = folder / "high"
    save_random_adapter(tiny_base.reference, lora_config(MAX_RANK + 1), path, seed=0)
    request = adapter_pb.CreateAdapterVersionRequest(adapter="bad", source=str(path))
    error = await refused(harmless, lambda _, stub: stub.CreateAdapterVersion(request))
    assert (error.code(), details_of(error).reason) == (PRECONDITION, "RANK_OVER_CAP")
    assert "rank 9" in str(error.details())


async def test_an_adapter_of_another_base(folder: Path, harmless: ServerUnderTest) -> None:
    other = load_reference(save_tiny_model("gpt2", folder / "gpt2"))
    config = lora_config(4, target_modules=["c_attn"], fan_in_fan_out=True)
    path = save_random_adapter(other, config, folder / "other", seed=0)
    request = adapter_pb.CreateAdapterVersionRequest(adapter="bad", source=str(path))
    error = await refused(harmless, lambda _, stub: stub.CreateAdapterVersion(request))
    assert (error.code(), details_of(error).reason) == (PRECONDITION, "WRONG_BASE")


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("{root}/../secret", INVALID),
        ("relative/path", INVALID),
        ("", INVALID),
        ("/etc", DENIED),
        ("file:///etc/passwd", DENIED),
        ("file://{root}/%2e%2e/secret", INVALID),
        ("http://example.org/adapter", INVALID),
        ("{root}/nothing-here", NOT_FOUND),
        ("{root}/link", DENIED),
        ("/proc/self/root/etc", DENIED),
    ],
)
async def test_paths_that_are_not_allowed(
    source: str, code: grpc.StatusCode, folder: Path, harmless: ServerUnderTest
) -> None:
    root = folder.parent
    if not (root / "link").is_symlink():
        (root / "link").symlink_to("/etc")
    request = adapter_pb.CreateAdapterVersionRequest(adapter="bad", source=source.format(root=root))
    error = await refused(harmless, lambda _, stub: stub.CreateAdapterVersion(request))
    assert error.code() is code


@pytest.mark.parametrize("filename", ["../evil", "/etc/evil", "sub/dir.json", "", "a\0b", ".."])
async def test_file_names_that_are_not_allowed(filename: str, harmless: ServerUnderTest) -> None:
    Request = adapter_pb.UploadAdapterVersionRequest
    messages = [
        Request(header=Request.Header(adapter="bad")),
        Request(chunk=adapter_pb.FileChunk(filename=filename, data=b"{}")),
    ]
    error = await refused(harmless, lambda _, stub: stub.UploadAdapterVersion(iter(messages)))
    assert error.code() is INVALID


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "..", "a" * 64, "_base", "a b", "é"])
async def test_names_that_are_not_allowed(
    name: str, tiny_base: TinyBase, harmless: ServerUnderTest
) -> None:
    request = adapter_pb.CreateAdapterVersionRequest(adapter=name, source=tiny_base.adapter(2))
    error = await refused(harmless, lambda _, stub: stub.CreateAdapterVersion(request))
    assert (error.code(), details_of(error).field) == (INVALID, "adapter")


# More than the server takes


async def test_ten_thousand_requests_at_once(tiny_base: TinyBase, tmp_path: Path) -> None:
    settings = tiny_settings(
        tmp_path,
        tiny_base.model,
        adapters={"roots": [str(tiny_base.folder)]},
        engine={"max_num_sequences": 8, "max_queued_requests": 56},
    )
    async with serving(settings) as running:
        await running.client.adapters.create("good", tiny_base.adapter(1))
        expected = {name: tokens_of(await ask(running, name, 8)) for name in ("", "good")}
        codes: Counter[grpc.StatusCode] = Counter()
        delays: set[float | None] = set()

        async def one(stub: GenerationServiceStub, adapter: str) -> None:
            request = generate_request(adapter=adapter, max_tokens=8, ignore_eos=True)
            try:
                answer = await stub.Generate(request)
            except grpc.aio.AioRpcError as error:
                codes[error.code()] += 1
                if error.code() is EXHAUSTED:
                    delays.add(details_of(error).retry_after_s)
            else:
                codes[grpc.StatusCode.OK] += 1
                assert list(answer.choices[0].token_ids) == expected[adapter]

        started = time.monotonic()
        async with grpc.aio.insecure_channel(running.target) as channel:
            stub = GenerationServiceStub(channel)
            neighbour = asyncio.create_task(ask(running, "good", 400))
            await until(lambda: running.server.scheduler.num_running)
            await asyncio.gather(*(one(stub, ("", "good")[i % 2]) for i in range(10_000)))
            assert tokens_of(await neighbour)[:8] == expected["good"]
        assert time.monotonic() - started < 60
        assert codes.total() == 10_000
        assert codes.keys() == {grpc.StatusCode.OK, EXHAUSTED}
        assert codes[EXHAUSTED] > 5_000
        assert delays == {1.0}
        assert codes[grpc.StatusCode.OK] >= 32
        await running.check_idle()
        assert tokens_of(await ask(running, "good", 8)) == expected["good"]
