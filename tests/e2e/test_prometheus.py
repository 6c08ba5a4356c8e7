"""What operators look at: the metrics page, promtool, a real Prometheus, reflection, health."""

import asyncio
import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.support.saved_models import save_tiny_model
from tests.support.server import ServerUnderTest, serving, tiny_settings
from tests.support.server_process import free_port

METHODS = {
    "graftwork.v1.GenerationService": {
        "Generate",
        "StreamGenerate",
        "Score",
        "Tokenize",
        "GetModel",
    },
    "graftwork.v1.AdapterService": {
        "CreateAdapterVersion",
        "UploadAdapterVersion",
        "DownloadAdapterVersion",
        "GetAdapter",
        "ListAdapters",
        "GetAdapterVersion",
        "ListAdapterVersions",
        "DeleteAdapterVersion",
        "UpdateAdapter",
        "RollbackAdapter",
        "LoadAdapter",
        "UnloadAdapter",
    },
}


def page(running: ServerUnderTest) -> str:
    url = f"http://127.0.0.1:{running.server.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read().decode()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model("llama", tmp_path_factory.mktemp("model"))


async def test_metrics_page_counts_and_is_clean(model: Path, tmp_path: Path) -> None:
    async with serving(tiny_settings(tmp_path, model)) as running:
        for _ in range(3):
            await running.client.generate("the quick", max_tokens=5, ignore_eos=True)
        text = await asyncio.to_thread(page, running)
        assert 'graftwork_request_success_total{finish_reason="length"} 3.0' in text
        assert "graftwork_generation_tokens_total 15.0" in text
        assert 'graftwork_adapter_requests_total{adapter="_base"} 3.0' in text
        if shutil.which("promtool") is None:
            pytest.skip("promtool is not installed (Debian: prometheus)")
        checked = await asyncio.to_thread(
            subprocess.run,
            ["promtool", "check", "metrics"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus (Debian's package)")
async def test_a_real_prometheus_scrapes_it(model: Path, tmp_path: Path) -> None:
    async with serving(tiny_settings(tmp_path, model)) as running:
        await running.client.generate("the quick", max_tokens=5, ignore_eos=True)
        config = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [
                {
                    "job_name": "graftwork",
                    "static_configs": [{"targets": [f"127.0.0.1:{running.server.metrics_port}"]}],
                }
            ],
        }
        (tmp_path / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        port = free_port()
        process = subprocess.Popen(  # noqa: ASYNC220 - starting it does not block
            [
                "prometheus",
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stderr=subprocess.DEVNULL,
        )
        try:
            assert await scraped(port, "graftwork_generation_tokens_total") == "5"
            assert await scraped(port, "up") == "1"
        finally:
            process.terminate()
            process.wait()


async def scraped(port: int, metric: str) -> str:
    """The value of a metric once Prometheus has it."""
    url = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(metric)}"
    for _ in range(120):
        try:
            answer = await asyncio.to_thread(fetch_json, url)
        except OSError:
            answer = {"data": {"result": []}}
        if answer["data"]["result"]:
            value: str = answer["data"]["result"][0]["value"][1]
            return value
        await asyncio.sleep(0.25)
    pytest.fail(f"Prometheus did not scrape {metric}")


def fetch_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as response:
        return json.load(response)


async def test_reflection_lists_all_methods_and_health_serves(model: Path, tmp_path: Path) -> None:
    async with (
        serving(tiny_settings(tmp_path, model)) as running,
        grpc.aio.insecure_channel(running.target) as channel,
    ):
        listed = await reflect(channel, reflection_pb2.ServerReflectionRequest(list_services=""))
        services = {service.name for service in listed.list_services_response.service}
        assert services >= {*METHODS, "grpc.health.v1.Health"}
        for service, methods in METHODS.items():
            request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=service)
            found = (await reflect(channel, request)).file_descriptor_response
            files = [FileDescriptorProto.FromString(f) for f in found.file_descriptor_proto]
            names = {m.name for f in files for s in f.service for m in s.method}
            assert methods <= names
            health = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service)
            )
            assert health.status == health_pb2.HealthCheckResponse.SERVING


async def reflect(
    channel: grpc.aio.Channel, request: reflection_pb2.ServerReflectionRequest
) -> reflection_pb2.ServerReflectionResponse:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    async for response in stub.ServerReflectionInfo(iter([request])):
        return response
    pytest.fail("no answer")
