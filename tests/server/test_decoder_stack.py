"""The layers in one call compute what their modules compute one after the other, bit for bit,
whatever the adapters of a batch are."""

import random
from pathlib import Path

import pytest
import torch
from graftwork_server.decoder_stack import DecoderStack
from graftwork_server.fusion import WholeList
from peft import LoraConfig
from torch import Tensor

from tests.support.engine import TinyEngine
from tests.support.method_cases import CASES
from tests.support.peft_adapters import save_random_adapter
from tests.support.tiny_models import tiny_model
from tests.support.tiny_serving import one_torch_thread

__all__ = ["one_torch_thread"]

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")
SIZES = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
# It replaces modules by its own, which the kernels do not know.
BY_MODULES = {"lora_and_modules"}
PROMPT = [5, 7, 9, 20, 30, 11, 40, 8, 3, 77, 250, 12, 19, 4, 66]


class Switched:
    """An engine that can be told to call modules."""

    def __init__(self, family: str = "llama", **sizes: object) -> None:
        self.model = tiny_model(family, **{**SIZES, **sizes})
        self.engine = TinyEngine(self.model, quantization="int8")
        (self._layers,) = [m for m in self.engine.base.model.modules() if isinstance(m, WholeList)]
        self.stack = self._layers.stand_in
        assert isinstance(self.stack, DecoderStack)

    def both(
        self, folders: list[Path | None], prompts: list[list[int]], chunk_size: int
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Logits of the prompts' tokens, from the stack and from the modules."""
        stacked = self.engine.run_logits(folders, prompts, chunk_size)
        self._layers.stand_in = None
        try:
            return stacked, self.engine.run_logits(folders, prompts, chunk_size)
        finally:
            self._layers.stand_in = self.stack


@pytest.fixture(scope="module")
def llama() -> Switched:
    return Switched()


@pytest.fixture
def kernel_calls(monkeypatch) -> list[int]:
    """The number of tokens of each call of the kernel."""
    calls: list[int] = []
    run = torch.ops.graftwork.run_decoder_layers.default

    def counted(layers, x, *rest):
        calls.append(x.shape[0])
        return run(layers, x, *rest)

    monkeypatch.setattr(torch.ops.graftwork.run_decoder_layers, "default", counted)
    return calls


def assert_same(found: tuple[list[Tensor], list[Tensor]]) -> None:
    for stacked, by_modules in zip(*found, strict=True):
        assert torch.equal(stacked, by_modules)


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(3, 400) for _ in range(draw.choice([1, 5, 15]))] for _ in range(count)]


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name not in BY_MODULES], ids=lambda case: case.name
)
def test_every_method(llama, case, tmp_path, kernel_calls):
    if not case.suits(llama.model):
        pytest.skip("not for this model")
    case.save(llama.model, tmp_path / "a", seed=1)
    folders = [tmp_path / "a", None, tmp_path / "a"]
    assert_same(llama.both(folders, [PROMPT, PROMPT[:4], PROMPT[3:9]], 4))
    assert kernel_calls


def test_all_methods_in_one_batch(llama, tmp_path, kernel_calls):
    cases = [case for case in CASES if case.suits(llama.model) and case.name not in BY_MODULES]
    folders: list[Path | None] = [None, None]
    for seed, case in enumerate(cases):
        case.save(llama.model, tmp_path / case.name, seed=seed)
        folders.append(tmp_path / case.name)
    for chunk_size in (1, 7, 100):
        assert_same(llama.both(folders, prompts(len(folders)), chunk_size))
    assert max(kernel_calls) > len(folders)


def test_gated_prompts_of_heads_whose_scale_is_no_power_of_two(tmp_path, kernel_calls):
    switched = Switched(num_attention_heads=4, head_dim=24)
    case = next(case for case in CASES if case.name == "llama_adapter")
    case.save(switched.model, tmp_path / "a", seed=0)
    assert_same(switched.both([tmp_path / "a", None], [PROMPT, PROMPT], 4))
    assert kernel_calls


def test_an_adapter_that_the_kernel_does_not_know(llama, tmp_path, kernel_calls):
    case = next(case for case in CASES if case.name in BY_MODULES)
    case.save(llama.model, tmp_path / "a", seed=0)
    assert_same(llama.both([tmp_path / "a", None], [PROMPT, PROMPT], 4))
    llama.engine.run_logits([None], [PROMPT])  # once it is gone, the kernel is back
    assert kernel_calls == [len(PROMPT)]


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("qwen2", {}),  # biases
        ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
        ("llama", {"hidden_size": 520, "num_attention_heads": 5, "num_key_value_heads": 1,
                   "head_dim": 104}),  # groups too long for integers
        ("llama", {"num_key_value_heads": 6, "intermediate_size": 100}),
    ],
    ids=["qwen2", "windows", "long-groups", "odd"],
)  # fmt: skip
@pytest.mark.parametrize("rows", [1, 3, 12, 13, 40])
def test_models_and_numbers_of_rows(family, sizes, rows, tmp_path, kernel_calls):
    switched = Switched(family, **sizes)
    linear = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    for seed, rank in enumerate((3, 16, 40)):
        config = LoraConfig(r=rank, lora_alpha=2 * rank, use_dora=seed == 1, **linear)
        save_random_adapter(switched.model, config, tmp_path / str(seed), seed=seed, strength=0.2)
    draw = random.Random(rows)
    folders = [
        draw.choice([None, *(tmp_path / str(seed) for seed in range(3))]) for _ in range(rows)
    ]
    assert_same(switched.both(folders, prompts(rows, seed=rows), 5))
    assert kernel_calls


def test_a_layer_that_does_not_fit_is_an_error(llama):
    layers = torch.classes.graftwork.DecoderLayers()
    with pytest.raises(RuntimeError, match="2 norms, 5 constants, 7 linears"):
        layers.add([], [], 0, [], [], [], [], [], [])
