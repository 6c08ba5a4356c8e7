from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from graftwork_server.kernels.int8_linear import int8_linear
from graftwork_server.quantization.int8 import quantize_int8


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_problem(rows):
    torch.manual_seed(rows)
    codes, scales = quantize_int8(torch.randn(200, 64))
    return torch.randn(rows, 64), codes, scales


def multiply_often(problem):
    first = int8_linear(*problem, None, 200)
    for _ in range(500):
        assert torch.equal(int8_linear(*problem, None, 200), first)
    return first


def test_callers_at_once_do_not_disturb_each_other():
    problems = [make_problem(rows) for rows in (1, 3, 16, 40)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(multiply_often, problems))
    for problem, result in zip(problems, results, strict=True):
        assert torch.equal(result, int8_linear(*problem, None, 200))


@pytest.mark.usefixtures("one_thread")
def test_bits_do_not_depend_on_the_number_of_threads():
    problems = [make_problem(rows) for rows in (1, 2, 16, 300)]
    alone = [int8_linear(*problem, None, 200) for problem in problems]
    torch.set_num_threads(3)
    for problem, expected in zip(problems, alone, strict=True):
        assert torch.equal(int8_linear(*problem, None, 200), expected)
