"""Metrics as a scraper reads them: from the HTTP endpoint, parsed, and checked by promtool."""

import shutil
import socket
import subprocess
import threading
import urllib.request

import grpc
import pytest
from graftwork_server.errors import StartupError
from graftwork_server.metrics import Metrics, MetricsServer
from graftwork_server.request import FinishReason
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture
def metrics():
    return Metrics(max_adapter_labels=2)


def finish(metrics, adapter, *, reason=FinishReason.STOP):
    metrics.observe_first_token(adapter, 0.05)
    metrics.observe_finished(adapter, reason, prompt_tokens=10, generation_tokens=4, latency_s=0.2)


def use_everything(metrics):
    for adapter in ("", "math", "law", "one-too-many"):
        metrics.set_live_version(adapter or "math", 3)
        finish(metrics, adapter)
    metrics.observe_rpc("/graftwork.v1.GenerationService/Generate", grpc.StatusCode.OK)
    metrics.observe_rpc("/graftwork.v1.GenerationService/Generate", grpc.StatusCode.NOT_FOUND)
    metrics.observe_rpc("/graftwork.v1.AdapterService/GetAdapter", grpc.StatusCode.NOT_FOUND)
    metrics.observe_inter_token(0.02)
    metrics.observe_step(0.03, 17)
    metrics.set_load(running=2, waiting=1, kv_cache_usage=0.25)
    metrics.observe_prefix_cache(queried_tokens=64, hit_tokens=48)
    metrics.count_preemptions()
    metrics.observe_drafts(drafted_tokens=9, accepted_tokens=7)
    metrics.set_build(version="1.2.3")
    metrics.set_model(model="m", digest="sha256:0", quantization="int8", device="cpu")
    metrics.set_residency("device", versions=2, num_bytes=1 << 20)
    metrics.observe_load("device", 0.01)
    metrics.observe_load("device", 0.01, ok=False)
    metrics.count_eviction("host")


def adapters_seen(metrics, name="graftwork_adapter_requests_total"):
    return {
        sample.labels["adapter"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    }


def scrape(server):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as response:
        return response.read().decode()


@pytest.fixture
def scraped(metrics):
    use_everything(metrics)
    server = MetricsServer(metrics.registry, "127.0.0.1", 0)
    yield scrape(server)
    server.stop()


def value(text, name, **labels):
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    raise AssertionError(f"{name}{labels} is not in the page")


def test_a_scrape_shows_what_was_observed(scraped):
    assert value(scraped, "graftwork_request_success_total", finish_reason="stop") == 4
    assert value(scraped, "graftwork_request_errors_total", code="NOT_FOUND") == 1
    assert value(scraped, "graftwork_time_to_first_token_seconds_count") == 4
    assert value(scraped, "graftwork_prompt_tokens_total") == 40
    assert value(scraped, "graftwork_generation_tokens_total") == 16
    assert value(scraped, "graftwork_num_requests_running") == 2
    assert value(scraped, "graftwork_kv_cache_usage_perc") == 0.25
    assert value(scraped, "graftwork_prefix_cache_hits_total") == 48
    assert value(scraped, "graftwork_spec_decode_num_draft_tokens_total") == 9
    assert value(scraped, "graftwork_spec_decode_num_accepted_tokens_total") == 7
    assert value(scraped, "graftwork_adapters_resident_bytes", tier="device") == 1 << 20
    assert value(scraped, "graftwork_adapter_loads_total", tier="device", result="error") == 1
    assert value(scraped, "graftwork_adapter_load_seconds_count", tier="device") == 1
    assert value(scraped, "graftwork_adapter_live_version", adapter="law") == 3
    assert value(scraped, "process_resident_memory_bytes") > 0


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_promtool_finds_nothing_to_say(scraped):
    check = subprocess.run(
        ["promtool", "check", "metrics"], input=scraped, text=True, capture_output=True, check=False
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


def test_adapters_beyond_the_limit_share_a_label(metrics):
    for adapter in ("a", "b", "c", "d"):
        metrics.set_live_version(adapter, 1)
        finish(metrics, adapter)
    finish(metrics, "")
    assert adapters_seen(metrics) == {"a": 1, "b": 1, "_other": 2, "_base": 1}
    assert adapters_seen(metrics, "graftwork_adapter_live_version") == {"a": 1, "b": 1}


def test_a_deleted_adapter_frees_its_label_and_does_not_take_it_back(metrics):
    for adapter in ("a", "b"):
        metrics.set_live_version(adapter, 1)
        finish(metrics, adapter)
    metrics.forget_adapter("a")
    finish(metrics, "a")  # a request that was running when its adapter was deleted
    metrics.set_live_version("c", 1)
    finish(metrics, "c")
    assert adapters_seen(metrics) == {"b": 1, "c": 1, "_other": 1}
    metrics.forget_adapter("never-seen")


@given(st.lists(st.tuples(st.sampled_from(["live", "finish", "forget"]), st.integers(0, 9))))
def test_labels_stay_bounded(operations):
    metrics = Metrics(max_adapter_labels=3)
    for operation, number in operations:
        adapter = f"adapter-{number}"
        if operation == "live":
            metrics.set_live_version(adapter, 1)
        elif operation == "finish":
            finish(metrics, adapter)
        else:
            metrics.forget_adapter(adapter)
        assert len(adapters_seen(metrics)) <= 4
        assert len(adapters_seen(metrics, "graftwork_adapter_live_version")) <= 3


def test_threads_lose_no_observation(metrics):
    metrics.set_live_version("a", 1)
    threads = [
        threading.Thread(target=lambda: [finish(metrics, "a") for _ in range(200)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert adapters_seen(metrics) == {"a": 800}


def test_two_servers_in_one_process_do_not_meet():
    first, second = Metrics(max_adapter_labels=1), Metrics(max_adapter_labels=1)
    finish(first, "")
    assert adapters_seen(first) == {"_base": 1}
    assert adapters_seen(second) == {}


def test_stopping_frees_the_port(metrics):
    server = MetricsServer(metrics.registry, "127.0.0.1", 0)
    port = server.port
    with pytest.raises(StartupError, match=f"127.0.0.1:{port}.*--metrics-port"):
        MetricsServer(metrics.registry, "127.0.0.1", port)
    server.stop()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
