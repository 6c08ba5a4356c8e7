"""A server's step on CUDA: every method in one batch gives what the CPU gives.

Where there is no device, a simulated one at least refuses tensors of two devices in one operation.
"""

import copy

import pytest
import torch

from tests.support.engine import TinyEngine
from tests.support.method_cases import CASES
from tests.support.simulated_cuda import DeviceMixError, simulated_cuda
from tests.support.tiny_models import tiny_model

# PEFT's SHiRA remarks on sparse tensors.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")
NUM_TOKENS = 4
ROUNDING = 0.05  # of logits, relative


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def rows(request, tmp_path_factory):
    """The model, and a folder and a prompt for each row; the first row is the base's."""
    model, folder = tiny_model(request.param), tmp_path_factory.mktemp(request.param)
    folders = [None]
    for seed, case in enumerate(case for case in CASES if case.suits(model)):
        reference = case.reference_base(model)
        folders.append(case.save(reference, folder / case.name, seed=seed))
    prompts = [[5 + row, 7, 9, 20 + row, 30, 11][: 4 + row % 3] for row in range(len(folders))]
    return model, folders, prompts


def answers(engine, folders, prompts, device="cpu"):
    assert engine.base.device.type == device
    logits = [engine.run_logits(folders, prompts, size) for size in (1000, 8)]
    assert {row.device.type for run in logits for row in run} == {device}
    tokens, _ = engine.generate(folders, prompts, NUM_TOKENS)
    return [[row.cpu() for row in run] for run in logits], tokens


def check_equal(found, expected, tolerance):
    for run, expected_run in zip(found[0], expected[0], strict=True):
        for row, expected_row in zip(run, expected_run, strict=True):
            torch.testing.assert_close(row, expected_row, rtol=0, atol=tolerance)
    assert found[1] == expected[1]


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_simulated_device_gives_what_the_cpu_gives(rows, quantization):
    expected = answers(TinyEngine(rows[0], quantization=quantization), *rows[1:])
    with simulated_cuda():
        engine = TinyEngine(rows[0], quantization=quantization, device="cuda")
        found = answers(engine, *rows[1:], device="cuda")
    # The CPU's int8 kernel rounds activations.
    check_equal(found, expected, 1e-3 if quantization == "int8" else 1e-4)


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_simulated_device_serves_a_base_in_bfloat16(rows, quantization):
    """As a checkpoint in bfloat16 is served on CUDA."""
    model, folders, prompts = rows
    expected = TinyEngine(model, quantization=quantization).run_logits(folders, prompts)
    with simulated_cuda():
        engine = TinyEngine(
            copy.deepcopy(model).bfloat16(), quantization=quantization, device="cuda"
        )
        found = [row.cpu() for row in engine.run_logits(folders, prompts)]
    for row, expected_row in zip(found, expected, strict=True):
        error = (row - expected_row).norm() / expected_row.norm()
        assert error < ROUNDING, error


def test_how_often_a_step_waits_for_the_device_does_not_depend_on_the_depth():
    reads = []
    for num_layers in (2, 4):
        model = tiny_model("llama", num_hidden_layers=num_layers)
        with simulated_cuda() as device:
            engine = TinyEngine(model, device="cuda")
            before = device.num_reads
            engine.generate([None, None], [[5, 6, 7], [8, 9]], NUM_TOKENS)
            reads.append(device.num_reads - before)
    assert reads[0] == reads[1] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_device_gives_what_the_cpu_gives(rows, quantization):
    expected = answers(TinyEngine(rows[0], quantization=quantization), *rows[1:])
    engine = TinyEngine(rows[0], quantization=quantization, device="cuda")
    check_equal(answers(engine, *rows[1:], device="cuda"), expected, 1e-3)


def test_the_simulated_device_refuses_what_a_device_refuses():
    on_cpu = torch.zeros(3)
    with simulated_cuda():
        on_device = torch.ones(3, device="cuda")
        with pytest.raises(DeviceMixError, match="cuda and on cpu"):
            on_device + on_cpu
        with pytest.raises(DeviceMixError, match="take cpu"):
            on_device.numpy()
        moved = on_cpu.to("cuda")
        moved += on_device
        assert moved.device.type == "cuda"
        assert moved.cpu().tolist() == [1, 1, 1]
    assert on_cpu.tolist() == [0, 0, 0]
