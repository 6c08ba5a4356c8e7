from pathlib import Path

import graftwork
import pytest
from graftwork import Client, Residency
from graftwork.folders import CHUNK_BYTES
from graftwork.v1 import adapter_service_pb2 as pb

from tests.client.fake_server import FakeServer

CONFIG = {"adapter_config.json": b"{}"}


def test_upload_and_download_round_trip(
    server: FakeServer, client: Client, peft_folder: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    version = client.adapters.upload(
        "poet",
        peft_folder,
        make_live=False,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert version.selector == "poet@1"
    size = sum((peft_folder / name).stat().st_size for name in PEFT_FILES)
    assert seen[-1] == (size, size)
    assert seen == sorted(seen)
    assert client.adapters.get("poet").live_version == 0

    target = tmp_path / "deep" / "copy"
    received: list[tuple[int, int]] = []
    downloaded = client.adapters.download(
        "poet@1", target, progress=lambda done, total: received.append((done, total))
    )
    assert downloaded == version
    assert received[-1] == (size, size)
    assert sorted(path.name for path in target.iterdir()) == sorted(PEFT_FILES)
    for name in PEFT_FILES:
        assert (target / name).read_bytes() == (peft_folder / name).read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["copy"]


PEFT_FILES = ("adapter_config.json", "graftwork_prompt.json", "adapter_model.safetensors")


def test_an_upload_sends_small_chunks_weights_last(
    server: FakeServer, client: Client, peft_folder: Path
) -> None:
    client.adapters.upload("poet", peft_folder)
    header, *parts = server.requests
    assert isinstance(header, pb.UploadAdapterVersionRequest.Header)
    assert not header.HasField("make_live")
    names = [part.chunk.filename for part in parts]
    assert names == [*PEFT_FILES[:2], *[PEFT_FILES[2]] * 3]
    assert max(len(part.chunk.data) for part in parts) == CHUNK_BYTES


def test_a_prompt_alone_is_uploaded(server: FakeServer, client: Client, tmp_path: Path) -> None:
    (tmp_path / "graftwork_prompt.json").write_text('{"system": "Rhyme."}')
    client.adapters.upload("poet", tmp_path)
    assert [part.chunk.filename for part in server.requests[1:]] == ["graftwork_prompt.json"]


def test_a_refused_upload(server: FakeServer, client: Client, peft_folder: Path) -> None:
    refusal = graftwork.status.InvalidFieldError("header.adapter", "has a slash")
    server.failures["UploadAdapterVersion"] = [refusal]
    with pytest.raises(graftwork.InvalidArgument) as caught:
        client.adapters.upload("a/b", peft_folder)
    assert caught.value.field == "header.adapter"


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("adapter_config.json", "no adapter_config.json"),
        ("adapter_model.safetensors", "no adapter_model.safetensors"),
    ],
)
def test_a_folder_without_an_adapter(client, peft_folder: Path, missing, message) -> None:
    (peft_folder / missing).unlink()
    if missing == "adapter_model.safetensors":
        (peft_folder / "graftwork_prompt.json").unlink()
    with pytest.raises(graftwork.InvalidArgument, match=message):
        client.adapters.upload("poet", peft_folder)


def test_a_pickled_adapter(client: Client, peft_folder: Path) -> None:
    (peft_folder / "adapter_model.safetensors").rename(peft_folder / "adapter_model.bin")
    with pytest.raises(graftwork.InvalidArgument, match="pickle"):
        client.adapters.upload("poet", peft_folder)


def test_what_the_progress_callback_raises_comes_out(client: Client, peft_folder: Path) -> None:
    def progress(done: int, total: int) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        client.adapters.upload("poet", peft_folder, progress=progress)


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "..",
        ".",
        "",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "C:evil",
        "a\0b",
        ".hidden",
        "a" * 300,
    ],
)
def test_a_download_refuses_names_that_lead_out(
    server: FakeServer, client: Client, tmp_path: Path, name: str
) -> None:
    server.add_version("poet", CONFIG | {name: b"evil"})
    target = tmp_path / "inside" / "copy"
    with pytest.raises(graftwork.Internal, match="not a plain name"):
        client.adapters.download("poet", target)
    assert list((tmp_path / "inside").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


def test_a_download_refuses_a_file_in_pieces_apart(server, client: Client, tmp_path: Path) -> None:
    server.add_version("poet", CONFIG | {"b": b"b"})
    chunks = server.files["poet", 1]
    chunks.append(chunks[0])
    with pytest.raises(graftwork.Internal, match="apart"):
        client.adapters.download("poet", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_download(server: FakeServer, client: Client, tmp_path: Path) -> None:
    server.add_version("poet", {})
    with pytest.raises(graftwork.Internal, match="no file"):
        client.adapters.download("poet", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_a_download_overwrites_nothing(server: FakeServer, client: Client, tmp_path: Path) -> None:
    server.add_version("poet", CONFIG)
    (tmp_path / "mine").touch()
    with pytest.raises(FileExistsError):
        client.adapters.download("poet", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    client.adapters.download("poet", tmp_path / "empty")
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["adapter_config.json"]


def test_a_failed_download_leaves_nothing(server: FakeServer, client, tmp_path: Path) -> None:
    with pytest.raises(graftwork.NotFound):
        client.adapters.download("nobody", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_lists_page_by_themselves(server: FakeServer, client: Client) -> None:
    for index in range(7):
        server.add_version(f"adapter-{index}", CONFIG)
        server.add_version(f"adapter-{index}", CONFIG)
    names = [adapter.name for adapter in client.adapters.list(page_size=3)]
    assert names == [f"adapter-{index}" for index in range(7)]
    assert len(server.requests_of(pb.ListAdaptersRequest)) == 3
    selectors = [version.selector for version in client.adapters.versions("adapter-3", page_size=1)]
    assert selectors == ["adapter-3@1", "adapter-3@2"]
    assert len(list(client.adapters.versions())) == 14


def test_a_list_asks_for_the_next_page_only_when_drawn(server: FakeServer, client: Client) -> None:
    for index in range(4):
        server.add_version(f"adapter-{index}", CONFIG)
    listing = client.adapters.list(page_size=2)
    assert next(listing).name == "adapter-0"
    assert len(server.requests_of(pb.ListAdaptersRequest)) == 1


def test_pointers_and_residency(server: FakeServer, client: Client) -> None:
    client.adapters.create("poet", "poet/v1")
    assert client.adapters.create("poet", "poet/v2", make_live=True).source == "poet/v2"
    assert client.adapters.get("poet").live_version == 2
    assert client.adapters.rollback("poet").live_version == 1
    split = client.adapters.update("poet", traffic_split={1: 90, 2: 10}, pinned=True)
    assert (split.traffic_split, split.pinned) == ({1: 90, 2: 10}, True)
    ended = client.adapters.update("poet", live_version=2, traffic_split={})
    assert (ended.traffic_split, ended.live_version, ended.pinned) == ({}, 2, True)
    assert client.adapters.load("poet").residency is Residency.DEVICE
    assert client.adapters.unload("poet@2").residency is Residency.DISK
    client.adapters.delete("poet@1")
    with pytest.raises(graftwork.NotFound):
        client.adapters.get_version("poet@1")
