"""Folders of every method, damaged in thousands of ways: each is refused, or loaded right, and
leaves nothing behind. A load is right if PEFT's answer for the damaged files is ours."""

import gc
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from graftwork.status import WireError
from graftwork_adapters.artifact import read_artifact
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.lowering import has_effect, lower
from graftwork_adapters.registration import Registrar
from torch import nn

from tests.adapters.mutations import Folder, write_mutant
from tests.adapters.registry_helpers import OpenRegistry
from tests.support.engine import TinyEngine
from tests.support.method_cases import CASES
from tests.support.peft_adapters import reference_logits
from tests.support.tiny_models import tiny_model
from tests.support.tiny_serving import one_torch_thread

__all__ = ["one_torch_thread"]

# PEFT's SHiRA remarks on sparse tensors.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")
NUM_CASES = 10_000
MAX_SECONDS = 5.0  # of the processor, for one case; patterns alone may take 2
TOLERANCE = 1e-3  # of logits, or relative to the adapter's effect where that is over 1
HUGE = 1e18  # a product of two such numbers overflows
PROMPT = [5, 7, 9, 20, 30, 11]
MAX_GROWTH_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Bench:
    model: nn.Module
    engine: TinyEngine
    folders: list[Folder]
    registrar: Registrar
    source: Path
    staging: Path


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    model = tiny_model("llama")
    folders = []
    for seed, case in enumerate(CASES):
        path = tmp_path_factory.mktemp(case.name)
        folders.append(Folder.read(case.save(model, path, seed=seed)))
    engine = TinyEngine(model)
    root = tmp_path_factory.mktemp("fuzz")
    source = root / "source"
    source.mkdir()
    opened = OpenRegistry(root)
    registrar = Registrar(opened.registry, opened.store, engine.base, [root], AdapterLimits())
    yield Bench(model, engine, folders, registrar, source, root / "store" / "staging")
    opened.close()


def run_case(bench: Bench, seed: int) -> str:
    """ "loaded", or the reason of the refusal."""
    what = write_mutant(bench.folders, seed, bench.source)
    started = time.process_time()
    try:
        record = bench.registrar.register_source(
            "fuzzed", str(bench.source), make_live=None, request=None
        )
    except WireError as error:
        outcome = error.reason
        str(error).encode()  # a message that gRPC can carry
    except Exception as error:
        raise AssertionError(f"{what}: {error!r}") from error
    else:
        check_loaded(bench, record.digest, what)
        outcome = "loaded"
    assert time.process_time() - started < MAX_SECONDS, what
    assert not any(bench.staging.iterdir()), what
    return outcome


def check_loaded(bench: Bench, digest: str, what: str) -> None:
    """What was registered has an effect, and the right one."""
    stored = bench.registrar.store.path(digest)
    artifact = read_artifact(stored, AdapterLimits())
    lowered = lower(artifact, bench.engine.base, max_rank=AdapterLimits().max_rank)
    assert has_effect(lowered, bench.engine.base), what
    numbers = [t.double() for t in (*artifact.tensors.values(), *lowered.tensors()) if t.numel()]
    if any(tensor.abs().max() > HUGE for tensor in numbers):
        return  # sums overflow, or not, by their order
    if artifact.config.get("task_type", None) is None and lowered.num_virtual_tokens:
        return  # without a task PEFT's model leaves the virtual tokens out, and says nothing
    (found,) = bench.engine.run_logits([stored], [PROMPT])
    try:
        expected = reference_logits(bench.model, stored, PROMPT)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return  # PEFT cannot load the file, for one of its reasons
    effect = (expected - reference_logits(bench.model, None, PROMPT)).abs().max()
    difference = (found - expected).abs().max()
    assert difference < TOLERANCE * max(1.0, float(effect)), (what, difference, effect)


def run_cases(bench: Bench, seeds: range) -> Counter[str]:
    """A fifth of them first, after which descriptors and memory stay as they are."""
    outcomes: Counter[str] = Counter()
    before = (0, 0)
    for index, seed in enumerate(seeds):
        if index == len(seeds) // 5:
            before = holdings()
        outcomes[run_case(bench, seed)] += 1
    files, memory = holdings()
    assert files == before[0]
    assert memory - before[1] < MAX_GROWTH_BYTES
    assert bench.engine.base.compute_digest() == bench.engine.base.digest
    return outcomes


def holdings() -> tuple[int, int]:
    """Open file descriptors and resident bytes."""
    gc.collect()
    process = psutil.Process()
    return process.num_fds(), process.memory_info().rss


def test_a_tenth_of_the_cases(bench: Bench) -> None:
    outcomes = run_cases(bench, range(0, NUM_CASES, 10))
    assert outcomes["loaded"] > 20
    assert outcomes.keys() >= {"INVALID_ARTIFACT", "UNSUPPORTED_FIELD", "WRONG_BASE"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_case(bench: Bench) -> None:
    outcomes = run_cases(bench, range(NUM_CASES))
    assert sum(outcomes.values()) == NUM_CASES
