"""Paths that callers name, confined to the configured adapter roots after resolving links."""

import os
import stat
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from urllib.parse import unquote, urlsplit

from graftwork.status import InvalidFieldError

from graftwork_adapters.errors import InvalidArtifact, PathNotAllowed, SourceNotFound


def source_folder(source: str, roots: Sequence[Path], *, field: str = "source") -> Path:
    """The folder that a path or file:// URI names, resolved and inside a root.

    Raises InvalidFieldError on what is no such path, PathNotAllowed outside the roots (whether or
    not it exists), SourceNotFound where no folder is.
    """
    folder = confine(_local_path(source, field), roots)
    if not folder.is_dir():
        raise SourceNotFound(f"{field}: no folder at {source}", field=field)
    return folder


def confine(path: Path, roots: Sequence[Path]) -> Path:
    """`path` with its links resolved; raises PathNotAllowed unless that lies in a root."""
    resolved = Path(os.path.realpath(path))
    for root in roots:
        if resolved.is_relative_to(os.path.realpath(root)):
            return resolved
    raise PathNotAllowed(f"{path} is outside the adapter roots of this server")


def open_regular(path: Path) -> BufferedReader:
    """Opens a regular file that is not a link; never blocks on a pipe or a device."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SourceNotFound(f"{path.name} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidArtifact(f"{path.name} is not a regular file")
    return os.fdopen(descriptor, "rb")


def _local_path(source: str, field: str) -> Path:
    if source == "":
        raise InvalidFieldError(field, "must name a path or a file:// URI")
    if "\0" in source:
        raise InvalidFieldError(field, "must not hold a null character")
    if "://" in source:
        source = _path_of_uri(source, field)
    path = Path(source)
    if not path.is_absolute():
        raise InvalidFieldError(field, f"must be an absolute path; got {source!r}")
    if ".." in path.parts:
        raise InvalidFieldError(field, 'must not hold ".."')
    return path


def _path_of_uri(source: str, field: str) -> str:
    try:
        uri = urlsplit(source)
    except ValueError as error:
        raise InvalidFieldError(field, f"is not a valid URI: {error}") from None
    if uri.scheme != "file":
        raise InvalidFieldError(
            field, f'scheme "{uri.scheme}://" is not supported; supported: a path, file://'
        )
    if uri.netloc not in {"", "localhost"} or uri.query or uri.fragment:
        raise InvalidFieldError(field, "a file:// URI must name a local path and nothing else")
    path = unquote(uri.path)
    if "\0" in path:
        raise InvalidFieldError(field, "must not hold a null character")
    return path
