"""What a Prometheus server scrapes, and the HTTP endpoint it scrapes it from.

Names follow vLLM's where the meaning is the same, under the prefix `graftwork_`. Methods may be
called from any thread. Times are in seconds. An adapter has metrics of its own from the moment it
has a live version, for the first `max_adapter_labels` of them; the others share the label "_other",
and the base is "_base" (neither is a valid adapter name).
"""

import contextlib
import platform
import threading
from collections.abc import Iterator

import grpc
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)

from graftwork_server.errors import StartupError
from graftwork_server.request import FinishReason

BASE_LABEL = "_base"
OTHER_LABEL = "_other"

_FIRST_TOKEN_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1, 2, 4, 8, 15, 30, 60, 120)
_INTER_TOKEN_BUCKETS = (0.005, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_REQUEST_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5)
_STEP_TOKEN_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_LOAD_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

_GENERATION_SERVICE = "/graftwork.v1.GenerationService/"


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(
        self, *, max_adapter_labels: int, registry: CollectorRegistry | None = None
    ) -> None:
        self.registry = registry or CollectorRegistry()
        self._labels = _AdapterLabels(max_adapter_labels)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._define_request_metrics()
        self._define_engine_metrics()
        self._define_adapter_metrics()
        self._define_journal_metrics()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"graftwork_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"graftwork_{name}", text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(f"graftwork_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _define_request_metrics(self) -> None:
        self._rpcs = self._counter(
            "rpcs_total", "RPCs that ended, by method and gRPC code.", "method", "code"
        )
        self._success = self._counter(
            "request_success_total", "Answers that ended, by reason.", "finish_reason"
        )
        self._errors = self._counter(
            "request_errors_total", "Generation RPCs that failed, by gRPC code.", "code"
        )
        self._first_token = self._histogram(
            "time_to_first_token_seconds",
            "From arrival to the first token.",
            _FIRST_TOKEN_BUCKETS,
        )
        self._inter_token = self._histogram(
            "inter_token_latency_seconds",
            "Between two tokens of one answer.",
            _INTER_TOKEN_BUCKETS,
        )
        self._latency = self._histogram(
            "e2e_request_latency_seconds",
            "From arrival to the last token.",
            _REQUEST_BUCKETS,
        )
        self._prompt_tokens = self._counter("prompt_tokens_total", "Tokens of prompts.")
        self._generation_tokens = self._counter("generation_tokens_total", "Tokens generated.")

    def _define_engine_metrics(self) -> None:
        self._running = self._gauge("num_requests_running", "Sequences in memory.")
        self._waiting = self._gauge("num_requests_waiting", "Sequences that wait for memory.")
        self._kv_usage = self._gauge(
            "kv_cache_usage_perc", "Share of the key/value cache in use; 1 is all of it."
        )
        self._cache_queries = self._counter(
            "prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache."
        )
        self._cache_hits = self._counter(
            "prefix_cache_hits_total", "Prompt tokens found in the prefix cache."
        )
        self._preemptions = self._counter(
            "num_preemptions_total", "Sequences put back in the queue for want of memory."
        )
        self._draft_tokens = self._counter(
            "spec_decode_num_draft_tokens_total", "Tokens guessed by prompt look-up."
        )
        self._accepted_tokens = self._counter(
            "spec_decode_num_accepted_tokens_total", "Guessed tokens that were sampled."
        )
        self._step_seconds = self._histogram(
            "step_duration_seconds", "One step of the engine.", _STEP_BUCKETS
        )
        self._step_tokens = self._histogram(
            "step_tokens", "Tokens computed in one step.", _STEP_TOKEN_BUCKETS
        )
        self._build = self._gauge("build_info", "What this server is; 1.", "version", "python")
        self._model = self._gauge(
            "model_info", "The base model; 1.", "model", "digest", "quantization", "device"
        )

    def _define_adapter_metrics(self) -> None:
        self._adapter_requests = self._counter(
            "adapter_requests_total", "Answers that ended, by adapter.", "adapter"
        )
        self._adapter_prompt_tokens = self._counter(
            "adapter_prompt_tokens_total", "Tokens of prompts, by adapter.", "adapter"
        )
        self._adapter_generation_tokens = self._counter(
            "adapter_generation_tokens_total", "Tokens generated, by adapter.", "adapter"
        )
        self._adapter_first_token = self._histogram(
            "adapter_time_to_first_token_seconds",
            "From arrival to the first token, by adapter.",
            _FIRST_TOKEN_BUCKETS,
            "adapter",
        )
        self._adapter_latency = self._histogram(
            "adapter_e2e_request_latency_seconds",
            "From arrival to the last token, by adapter.",
            _REQUEST_BUCKETS,
            "adapter",
        )
        self._live_version = self._gauge(
            "adapter_live_version", "The version that a name resolves to; 0 is none.", "adapter"
        )
        self._resident = self._gauge("adapters_resident", "Versions held, by tier.", "tier")
        self._resident_bytes = self._gauge(
            "adapters_resident_bytes", "Size of the versions held, by tier.", "tier"
        )
        self._loads = self._counter(
            "adapter_loads_total", "Versions brought into a tier, by result.", "tier", "result"
        )
        self._load_seconds = self._histogram(
            "adapter_load_seconds", "Bringing a version into a tier.", _LOAD_BUCKETS, "tier"
        )
        self._evictions = self._counter(
            "adapter_evictions_total", "Versions put out of a tier for others.", "tier"
        )

    def _define_journal_metrics(self) -> None:
        self._feedback = self._counter("feedback_total", "Feedback that was kept, by kind.", "kind")
        self._journal_queue = self._gauge(
            "journal_queue_generations", "Generations that wait to be written."
        )
        self._journal_generations = self._counter(
            "journal_generations_total",
            "Generations by what became of them: written, dropped for want of room, or failed.",
            "result",
        )
        self._journal_failures = self._counter(
            "journal_write_failures_total", "Transactions of the journal that failed."
        )

    # Requests: called by the servicers and the interceptor.

    def observe_rpc(self, method: str, code: grpc.StatusCode) -> None:
        """An RPC ended; `method` is its full path. Fits `StatusInterceptor(observe_rpc=...)`."""
        self._rpcs.labels(method, code.name).inc()
        if method.startswith(_GENERATION_SERVICE) and code is not grpc.StatusCode.OK:
            self._errors.labels(code.name).inc()

    def observe_first_token(self, adapter: str, seconds: float) -> None:
        """`adapter` is its name, "" for the base; the same in every method."""
        self._first_token.observe(seconds)
        with self._labels.of(adapter) as label:
            self._adapter_first_token.labels(label).observe(seconds)

    def observe_inter_token(self, seconds: float) -> None:
        self._inter_token.observe(seconds)

    def observe_finished(
        self,
        adapter: str,
        reason: FinishReason,
        *,
        prompt_tokens: int,
        generation_tokens: int,
        latency_s: float,
    ) -> None:
        """One answer ended. Of a request with several, each is observed."""
        self._success.labels(reason.name.lower()).inc()
        self._latency.observe(latency_s)
        self._prompt_tokens.inc(prompt_tokens)
        self._generation_tokens.inc(generation_tokens)
        with self._labels.of(adapter) as label:
            self._adapter_requests.labels(label).inc()
            self._adapter_prompt_tokens.labels(label).inc(prompt_tokens)
            self._adapter_generation_tokens.labels(label).inc(generation_tokens)
            self._adapter_latency.labels(label).observe(latency_s)

    # The engine: called by its thread after a step.

    def observe_step(self, seconds: float, num_tokens: int) -> None:
        self._step_seconds.observe(seconds)
        self._step_tokens.observe(num_tokens)

    def set_load(self, *, running: int, waiting: int, kv_cache_usage: float) -> None:
        """`kv_cache_usage` is a share in [0, 1]."""
        self._running.set(running)
        self._waiting.set(waiting)
        self._kv_usage.set(kv_cache_usage)

    def observe_prefix_cache(self, *, queried_tokens: int, hit_tokens: int) -> None:
        self._cache_queries.inc(queried_tokens)
        self._cache_hits.inc(hit_tokens)

    def count_preemptions(self, number: int = 1) -> None:
        self._preemptions.inc(number)

    def observe_drafts(self, *, drafted_tokens: int, accepted_tokens: int) -> None:
        self._draft_tokens.inc(drafted_tokens)
        self._accepted_tokens.inc(accepted_tokens)

    # The journal: called by its thread.

    def count_feedback(self, kind: str, number: int) -> None:
        self._feedback.labels(kind).inc(number)

    def set_journal_queue(self, generations: int) -> None:
        self._journal_queue.set(generations)

    def count_journal_generations(self, result: str, number: int) -> None:
        """`result` is "written", "dropped" or "failed"."""
        self._journal_generations.labels(result).inc(number)

    def count_journal_failure(self) -> None:
        self._journal_failures.inc()

    def set_build(self, *, version: str) -> None:
        self._build.labels(version, platform.python_version()).set(1)

    def set_model(self, *, model: str, digest: str, quantization: str, device: str) -> None:
        self._model.labels(model, digest, quantization, device).set(1)

    # Adapters: called by the registry's and the tiers' owners. Tiers: "device", "host", "disk".

    def set_live_version(self, adapter: str, version: int) -> None:
        """Call at start for each adapter and whenever a pointer moves; 0 where none is live."""
        if self._labels.admit(adapter):
            self._live_version.labels(adapter).set(version)

    def forget_adapter(self, adapter: str) -> None:
        """The adapter is gone: its series end and another adapter may take its label."""
        with self._labels.release(adapter) as had_label:
            if had_label:
                for metric in self._by_adapter():
                    with contextlib.suppress(KeyError):  # never observed
                        metric.remove(adapter)

    def _by_adapter(self) -> tuple[Counter | Gauge | Histogram, ...]:
        return (
            self._adapter_requests,
            self._adapter_prompt_tokens,
            self._adapter_generation_tokens,
            self._adapter_first_token,
            self._adapter_latency,
            self._live_version,
        )

    def set_residency(self, tier: str, *, versions: int, num_bytes: int) -> None:
        self._resident.labels(tier).set(versions)
        self._resident_bytes.labels(tier).set(num_bytes)

    def observe_load(self, tier: str, seconds: float, *, ok: bool = True) -> None:
        self._loads.labels(tier, "ok" if ok else "error").inc()
        if ok:
            self._load_seconds.labels(tier).observe(seconds)

    def count_eviction(self, tier: str) -> None:
        self._evictions.labels(tier).inc()


class _AdapterLabels:
    """Which adapters have a label of their own.

    A request may end after its adapter was deleted; since only a live version admits a name, that
    cannot bring the label back.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._admitted: set[str] = set()
        self._lock = threading.Lock()

    def admit(self, adapter: str) -> bool:
        with self._lock:
            if adapter not in self._admitted and len(self._admitted) < self._limit:
                self._admitted.add(adapter)
            return adapter in self._admitted

    @contextlib.contextmanager
    def of(self, adapter: str) -> Iterator[str]:
        """The label, which stays the adapter's while the block runs."""
        with self._lock:
            if not adapter:
                yield BASE_LABEL
            else:
                yield adapter if adapter in self._admitted else OTHER_LABEL

    @contextlib.contextmanager
    def release(self, adapter: str) -> Iterator[bool]:
        """Whether there was a label to free; nobody observes under it while the block runs."""
        with self._lock:
            had_label = adapter in self._admitted
            self._admitted.discard(adapter)
            yield had_label


class MetricsServer:
    """Serves a registry over HTTP from a thread of its own, at any path."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        """Port 0 lets the system choose. Raises `StartupError` where the address is taken."""
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise StartupError(
                f"cannot serve metrics on {host}:{port}: {error.strerror or error}; choose another "
                "address with --metrics-host and --metrics-port"
            ) from error

    @property
    def port(self) -> int:
        return int(self._server.server_port)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
