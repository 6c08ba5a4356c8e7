"""One file per method of adaptation. A file with a METHOD is found here; nothing lists them."""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache

from graftwork_adapters.methods.base import Method


@cache
def find_methods() -> Mapping[str, Method]:
    """Every method of this folder, by its PEFT type."""
    found: dict[str, Method] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        method = getattr(module, "METHOD", None)
        if isinstance(method, Method):
            if method.peft_type in found:
                raise RuntimeError(f"two files lower {method.peft_type}")
            found[method.peft_type] = method
    return found
