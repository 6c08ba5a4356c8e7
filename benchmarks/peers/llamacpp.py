"""llama.cpp: its HTTP server for batches of requests, `llama-batched-bench` for what is bare."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from graftwork_server.engine_parts import usable_cores

from benchmarks.peers.batched_bench import BatchedBenchRow, parse_batched_bench, row_with
from benchmarks.peers.install import LlamaCppFiles
from benchmarks.peers.runs import Batch, Round, Run, Workload, batch_figures
from benchmarks.peers.worker_process import PeerError
from benchmarks.server_process import free_port

_SLOTS = 16
_CONTEXT = 16384
_READY_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    files: LlamaCppFiles
    model: Path  # GGUF, Q8_0
    port: int
    pid: int
    num_adapters: int

    def round(self, workload: Workload) -> Round:
        figures, mixed, base = batch_figures(self.generate, self.generate, workload)
        return Round(figures | self._bare_figures(workload), mixed.token_ids, base.token_ids)

    def generate(self, batch: Batch) -> Run:
        """Each request over a connection of its own, opened beforehand, and streamed."""
        rows = range(len(batch.prompts))
        together = threading.Barrier(len(rows) + 1)
        started = 0.0
        connections = [HTTPConnection("127.0.0.1", self.port, timeout=600) for _ in rows]

        def one(row: int) -> tuple[list[int], list[float]]:
            connections[row].connect()
            body = json.dumps(self._request(batch, row))
            together.wait()
            connections[row].request(
                "POST", "/completion", body, {"Content-Type": "application/json"}
            )
            return _read_stream(connections[row])

        with ThreadPoolExecutor(len(rows)) as threads:
            answers = [threads.submit(one, row) for row in rows]
            started = time.perf_counter()
            together.wait()
            parts = [answer.result() for answer in answers]
        for connection in connections:
            connection.close()
        token_ids = [ids for ids, _ in parts]
        return Run(token_ids, [[time - started for time in times] for _, times in parts])

    def _request(self, batch: Batch, row: int) -> dict[str, Any]:
        chosen = batch.adapters[row]
        # Adapters that are not named have scale 0. An empty list would mean the server's own
        # scales, so the plain base names one with scale 0.
        adapter = {"id": 0, "scale": 0.0} if chosen is None else {"id": chosen, "scale": 1.0}
        return {
            "prompt": batch.prompts[row],
            "n_predict": batch.new_tokens,
            "lora": [adapter] if self.num_adapters else [],
            "ignore_eos": True,
            "cache_prompt": False,
            "temperature": 0,
            "samplers": ["top_k"],
            "top_k": 1,
            "stream": True,
            "return_tokens": True,
        }

    def _bare_figures(self, workload: Workload) -> dict[str, float]:
        """Without a server and without adapters; its own prompts are of as many tokens."""
        prompt, sequences = _mean_length(workload.prompts), len(workload.prompts)
        rows = self._batched_bench(prompt, workload.new_tokens, (1, sequences))
        together = row_with(rows, prompt_tokens=prompt, sequences=sequences)
        alone = row_with(rows, prompt_tokens=prompt, sequences=1)
        long = len(workload.long_prompt)
        (prefill,) = self._batched_bench(long, 1, (1,))
        return {
            "single_stream": alone.decode_tokens_per_s,
            "prefill": prefill.prefill_tokens_per_s,
            "decode16": together.decode_tokens_per_s,
        }

    def _batched_bench(
        self, prompt_tokens: int, new_tokens: int, sequences: tuple[int, ...]
    ) -> list[BatchedBenchRow]:
        finished = subprocess.run(
            [
                *(str(self.files.batched_bench), "-m", str(self.model)),
                *("-c", str(_CONTEXT), "-b", "2048", "-ub", "512", "-t", str(usable_cores())),
                *("-npp", str(prompt_tokens), "-ntg", str(new_tokens)),
                *("-npl", ",".join(map(str, sequences))),
            ],
            text=True,
            capture_output=True,
            check=False,
        )
        if finished.returncode:
            raise PeerError(f"llama-batched-bench fails:\n{finished.stderr[-2000:]}")
        return parse_batched_bench(finished.stdout + finished.stderr)


def _read_stream(connection: HTTPConnection) -> tuple[list[int], list[float]]:
    """Token ids of a server-sent event stream, and when each came. Raises PeerError."""
    response = connection.getresponse()
    if response.status != 200:
        raise PeerError(f"llama-server answers {response.status}: {response.read(500)!r}")
    token_ids: list[int] = []
    times: list[float] = []
    for line in response:
        if line.startswith(b"data: "):
            new = json.loads(line.removeprefix(b"data: "))["tokens"]
            token_ids += new
            times += [time.perf_counter()] * len(new)
    return token_ids, times


def _mean_length(prompts: list[list[int]]) -> int:
    return round(sum(map(len, prompts)) / len(prompts))


@contextlib.contextmanager
def running_llamacpp(
    files: LlamaCppFiles, model: Path, adapters: list[Path], *, log: Path
) -> Iterator[LlamaCpp]:
    """Its server with all adapters loaded and none applied. Raises PeerError."""
    gguf = converted(files, files.convert_model, [str(model), "--outtype", "q8_0"], model)
    loras = [
        converted(
            files,
            files.convert_lora,
            [str(adapter), "--base", str(model), "--outtype", "f16"],
            adapter,
        )
        for adapter in adapters
    ]
    port = free_port()
    command = [
        *(str(files.server), "-m", str(gguf), "--host", "127.0.0.1", "--port", str(port)),
        *("-np", str(_SLOTS), "-t", str(usable_cores()), "-c", str(_CONTEXT)),
        "--lora-init-without-apply",
        *(word for lora in loras for word in ("--lora", str(lora))),
    ]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        _await_ready(process, port, log)
        yield LlamaCpp(files, gguf, port, process.pid, len(loras))
    finally:
        process.terminate()
        process.wait(timeout=30)


def converted(files: LlamaCppFiles, script: Path, arguments: list[str], source: Path) -> Path:
    """`source`, a folder of safetensors, as a GGUF file; made once for the same content."""
    digest = hashlib.sha256("\0".join(arguments[1:]).encode())
    for weights in sorted(source.glob("*.safetensors")):
        with weights.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    digest.update((source / _config_name(source)).read_bytes())
    target = files.gguf / f"{source.name}-{digest.hexdigest()[:16]}.gguf"
    if target.exists():
        return target
    files.gguf.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    finished = subprocess.run(
        [sys.executable, str(script), *arguments, "--outfile", str(partial)],
        env={**os.environ, "PYTHONPATH": str(files.convert_packages), "HF_HUB_OFFLINE": "1"},
        text=True,
        capture_output=True,
        check=False,
    )
    if finished.returncode:
        raise PeerError(f"{script.name} cannot convert {source.name}:\n{finished.stderr[-2000:]}")
    return partial.rename(target)


def _config_name(folder: Path) -> str:
    adapter = "adapter_config.json"
    return adapter if (folder / adapter).exists() else "config.json"


def _await_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with (
            contextlib.suppress(OSError),  # what urllib raises is one
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5),
        ):
            return
        time.sleep(0.1)
    raise PeerError(f"llama-server does not get ready:\n{log.read_text()[-3000:]}")
