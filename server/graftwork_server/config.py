"""Where the server's settings come from.

Values come from a YAML file, from `GRAFTWORK_*` variables and from flags; later ones win. The key
`engine.block_size` is `engine: {block_size: ...}` in the file, `GRAFTWORK_ENGINE__BLOCK_SIZE` in
the environment (with two underscores, so that variables which orchestrators set for a service named
"graftwork-engine" are not mistaken for it), and `--engine-block-size` on the command line, except
where the tree names a shorter flag. An empty variable counts as unset. Unknown keys are refused.
"""

import difflib
import functools
import os
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import click
import yaml
from pydantic import ValidationError

from graftwork_server.errors import StartupError
from graftwork_server.settings import ENV_PREFIX, Key, Settings, keys, plain_type


class ConfigError(StartupError):
    """A setting is unknown or not acceptable; the message names key, value and source."""


def load_settings(
    config_path: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Settings from the file, then the environment (`os.environ`), then `overrides`.

    `overrides` is a tree like the file's: `{"engine": {"block_size": 32}}`. Raises `ConfigError`,
    which names every fault at once.
    """
    variables = os.environ if environment is None else environment
    sources = {
        f"in {config_path}": _read_file(config_path) if config_path else {},
        "from the environment": _read_environment(variables),
        "on the command line": dict(overrides or {}),
    }
    merged: dict[str, Any] = {}
    for values in sources.values():
        merged = _merge(merged, values)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_describe(error, sources)) from error


def config_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a click command `--config` and a flag per key; the function receives `settings`."""

    @functools.wraps(function)
    def command(*args: Any, config: Path | None, **parameters: Any) -> Any:
        overrides: dict[str, Any] = {}
        for key in keys():
            value = parameters.pop(key.parameter)
            if value is not None and value != ():
                target = overrides.setdefault(key.section, {}) if key.section else overrides
                target[key.name] = value
        try:
            settings = load_settings(config, overrides)
        except ConfigError as error:
            raise click.ClickException(str(error)) from error
        return function(*args, settings=settings, **parameters)

    wrapped: Callable[..., Any] = command
    for key in reversed(list(keys())):
        wrapped = _option(key)(wrapped)
    return click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="YAML file of settings.",
    )(wrapped)


def _option(key: Key) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    declaration, kind, multiple = key.flag, plain_type(key.field.annotation), False
    if kind is bool:
        declaration = f"{key.flag}/--no-{key.flag.removeprefix('--')}"
    if typing.get_origin(kind) is tuple:
        multiple = True
    help_text = key.field.description or ""
    default = key.field.default
    if key.field.default_factory is None and default not in (None, ()):
        help_text += f" Default: {str(default).lower() if kind is bool else default}."
    return click.option(
        declaration,
        key.parameter,
        type=_click_type(kind),
        default=None,
        multiple=multiple,
        help=help_text,
    )


def _click_type(kind: Any) -> Any:
    """How click completes and shows a value; judging it is left to the tree."""
    if typing.get_origin(kind) is Literal:
        return click.Choice(typing.get_args(kind))
    return {bool: click.BOOL, int: click.INT, float: click.FLOAT}.get(kind, click.STRING)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the settings in {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold settings by name, not a {type(values).__name__}")
    # A section whose every line is commented out reads as null.
    sections = {key.section for key in keys()}
    return {k: {} if v is None and k in sections else v for k, v in values.items()}


def _read_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    known = {key.variable: key for key in keys()}
    one_underscore = {variable.replace("__", "_"): variable for variable in known}
    values: dict[str, Any] = {}
    for variable, value in environment.items():
        if not variable.startswith(ENV_PREFIX) or value == "":
            continue
        key = known.get(variable)
        if key is not None:
            is_list = typing.get_origin(plain_type(key.field.annotation)) is tuple
            target = values.setdefault(key.section, {}) if key.section else values
            target[key.name] = value.split(os.pathsep) if is_list else value
        elif "__" in variable:
            raise ConfigError(f"unknown variable {variable}{_suggestion(variable, known)}")
        elif variable in one_underscore and not value.startswith("tcp://"):
            # Orchestrators set e.g. GRAFTWORK_GRPC_PORT to an address of this form by themselves.
            raise ConfigError(f"unknown variable {variable}: write {one_underscore[variable]}")
    return values


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        below = merged.get(name)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[name] = _merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


def _describe(error: ValidationError, sources: Mapping[str, Mapping[str, Any]]) -> str:
    faults = [_describe_fault(fault, sources) for fault in error.errors()]
    return faults[0] if len(faults) == 1 else "\n  ".join(["settings are not acceptable:", *faults])


def _describe_fault(fault: Any, sources: Mapping[str, Mapping[str, Any]]) -> str:
    path = [str(part) for part in fault["loc"]]
    name = ".".join(path)
    source = next((s for s, values in reversed(list(sources.items())) if _holds(values, path)), "")
    if fault["type"] == "extra_forbidden":
        prefix = ".".join(path[:-1])
        siblings = [str(key) for key in keys() if key.section == prefix]
        sections = [] if prefix else sorted({key.section for key in keys()} - {""})
        return f"unknown setting {name} {source}{_suggestion(name, [*siblings, *sections])}"
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if fault["type"] == "value_error":  # a section whose keys do not go together
        return f"{name}: {message}"
    return f"{name} = {fault['input']!r} {source}: {message}"


def _holds(values: Any, path: list[str]) -> bool:
    for part in path:
        if isinstance(values, list | tuple):
            return True
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
