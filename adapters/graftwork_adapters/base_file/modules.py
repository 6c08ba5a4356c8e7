"""Puts the tensors of a base's file into a tree of modules, without a copy."""

from collections.abc import Mapping

from torch import Tensor, nn

from graftwork_adapters.base_file.description import InvalidBaseFile


def by_module(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by the name of their module, then by their own name in it."""
    grouped: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, own_name = name.rpartition(".")
        grouped.setdefault(module, {})[own_name] = tensor
    return grouped


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives a model the file's tensors for its persistent buffers and for its parameters on the
    meta device, frozen; tied ones stay one parameter.

    Raises InvalidBaseFile where a parameter is not in the file.
    """
    parameters: dict[int, nn.Parameter] = {}
    for module_name, module in model.named_modules():
        prefix = f"{module_name}." if module_name else ""
        for name, empty in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if not empty.is_meta:
                continue
            tensor = tensors.get(prefix + name)
            if tensor is None:
                raise InvalidBaseFile(f"the base's file has no {prefix + name}")
            parameter = nn.Parameter(tensor, requires_grad=False)
            module.register_parameter(name, parameters.setdefault(tensor.data_ptr(), parameter))
        for name, _ in list(module.named_buffers(recurse=False)):
            if prefix + name in tensors:
                module.register_buffer(name, tensors[prefix + name])
