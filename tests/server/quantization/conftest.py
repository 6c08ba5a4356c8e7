import pytest
from graftwork_server.kernels.build import load_kernels


@pytest.fixture(scope="session", autouse=True)
def _kernels() -> None:
    if not load_kernels():
        pytest.skip("no C++ compiler: there is only the reference")
