"""The server's settings: one frozen, validated tree. `config.py` says where values come from."""

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ByteSize, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

ENV_PREFIX = "GRAFTWORK_"

UserPath = Annotated[Path, AfterValidator(Path.expanduser)]
Port = Annotated[int, Field(ge=0, le=65535)]  # 0 lets the system choose
Count = Annotated[int, Field(ge=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def _setting(default: Any, description: str, *, flag: str | None = None, **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"flag": flag}, **limits)


class ModelSettings(_Frozen):
    path: str | None = _setting(
        None,
        "Folder or Hugging Face id of the base model; by default the embedded one.",
        flag="--model",
    )
    quantization: Literal["auto", "none", "int8", "nf4"] = _setting(
        "auto", "How the base's weights are held; auto is int8.", flag="--quantization"
    )
    device: Literal["auto", "cpu", "cuda"] = _setting(
        "auto", "Where the base runs; auto is cuda where there is one.", flag="--device"
    )


class EngineSettings(_Frozen):
    max_num_sequences: Count = _setting(64, "Most sequences in one step.")
    max_tokens_per_step: Count = _setting(512, "Most tokens, prompts' included, in one step.")
    max_prefill_tokens_while_decoding: Count | None = _setting(
        None,
        "Most tokens of prompts in a step that also decodes: bounds the gap between tokens of a "
        "stream when others arrive. By default 96 on the CPU, and no limit of its own elsewhere.",
    )
    block_size: Count = _setting(16, "Tokens per block of the key/value cache.", le=512)
    kv_cache_bytes: ByteSize = _setting("1GiB", "Memory of the key/value cache.", gt=0)
    max_context_tokens: Count | None = _setting(
        None, "Longest prompt and answer together; by default what the base and the cache hold."
    )
    max_queued_requests: Count = _setting(1024, "Most requests that wait; more are refused.")
    prefix_cache: bool = _setting(True, "Reuse keys and values of prompts that begin alike.")
    threads: Count | None = _setting(
        None, "Threads of the kernels; by default the cores this process may use."
    )

    @model_validator(mode="after")
    def _every_sequence_moves(self) -> Self:
        if self.max_tokens_per_step < self.max_num_sequences:
            raise ValueError(
                f"max_tokens_per_step is {self.max_tokens_per_step}, but one step must have a "
                f"token for each of max_num_sequences, which is {self.max_num_sequences}"
            )
        return self


class AdapterSettings(_Frozen):
    store_dir: UserPath | None = _setting(
        None, "Where versions are kept; by default adapters/ in the data folder."
    )
    roots: tuple[UserPath, ...] = _setting(
        (),
        "Folders that adapters may be registered from by path (in a variable: separated by ':').",
        flag="--adapter-root",
    )
    device_slots: Count = _setting(64, "Most versions on the device at once.")
    max_rank: Count = _setting(128, "Highest rank that is accepted.")
    host_cache_bytes: ByteSize = _setting("1GiB", "Memory for versions off the device.", ge=0)
    require_verified_base: bool = _setting(
        False, "Refuse files that do not name the digest of the base they were trained on."
    )
    max_upload_bytes: ByteSize = _setting("1GiB", "Largest version that is accepted.", gt=0)
    factor_dtype: Literal["auto", "file", "bfloat16"] = _setting(
        "auto",
        "Precision of adapters' factors: as in the file, or rounded to bfloat16 for speed; auto "
        "rounds where the base is quantized.",
    )


class GrpcSettings(_Frozen):
    host: str = _setting("127.0.0.1", "Address that gRPC listens on.", flag="--host", min_length=1)
    port: Port = _setting(50051, "Port that gRPC listens on.", flag="--port")
    tls_cert: UserPath | None = _setting(None, "PEM file of the server's certificate chain.")
    tls_key: UserPath | None = _setting(None, "PEM file of the certificate's private key.")
    tls_client_ca: UserPath | None = _setting(
        None, "PEM file of the authorities of clients; every client must then have a certificate."
    )
    max_message_bytes: ByteSize = _setting("16MiB", "Largest message either way.", gt=0)
    stream_interval_ms: float = _setting(
        20.0,
        "Milliseconds between two messages of one stream; tokens that come sooner wait for those "
        "after them. The first is sent at once, as is the end. 0 sends every token by itself.",
        ge=0,
        le=1000,
    )
    drain_grace_s: float = _setting(
        30.0, "Seconds that running requests get to finish after SIGTERM.", ge=0
    )

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together; set both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key")
        return self


class MetricsSettings(_Frozen):
    host: str = _setting("127.0.0.1", "Address that metrics are served on.", min_length=1)
    port: Port = _setting(9095, "Port that metrics are served on.")
    max_adapter_labels: int = _setting(
        100, 'Adapters with metrics of their own; the others share the label "_other".', ge=0
    )


class LimitSettings(_Frozen):
    default_max_tokens: Count = _setting(256, "Tokens of an answer whose request does not say.")
    max_new_tokens: Count = _setting(4096, "Most tokens that a request may ask for.")
    max_n: Count = _setting(16, "Most answers of one request.")
    max_logprobs: int = _setting(20, "Most alternatives with each log-probability.", ge=0)
    max_stop_strings: int = _setting(16, "Most stop strings of one request.", ge=0)
    max_completions: Count = _setting(64, "Most completions of one Score request.")
    max_prompt_lookup_tokens: int = _setting(
        16,
        "Most tokens that a request may have guessed in a step; 0 turns prompt look-up off.",
        ge=0,
    )

    @model_validator(mode="after")
    def _default_is_allowed(self) -> Self:
        if self.default_max_tokens > self.max_new_tokens:
            raise ValueError(
                f"default_max_tokens is {self.default_max_tokens}, above max_new_tokens, which is "
                f"{self.max_new_tokens}"
            )
        return self


class JournalSettings(_Frozen):
    enabled: bool = _setting(True, "Keep generations and feedback, and serve FeedbackService.")
    url: str | None = _setting(
        None,
        "Database, as sqlite:///PATH or postgresql+psycopg://USER@HOST/NAME; by default "
        "journal.sqlite3 in the data folder.",
    )
    retention_days: float = _setting(
        90.0, "Days after which generations and the feedback on them are deleted; 0 is never.", ge=0
    )
    queue_bytes: ByteSize = _setting(
        "64MiB", "Memory for generations that wait to be written; more are dropped.", gt=0
    )


class TrainingSettings(_Frozen):
    enabled: bool = _setting(
        True, "Run training jobs, and serve TrainingService; needs the journal."
    )
    threads: Count = _setting(1, "Threads of a trainer.")
    scheduling: Literal["idle", "nice"] = _setting(
        "idle",
        "Whether a trainer gets only what serving leaves of the processor (idle, Linux), or "
        "competes at its niceness.",
    )
    niceness: int = _setting(19, "Niceness of a trainer.", ge=0, le=19)
    max_job_duration_s: float = _setting(
        86400.0, "Longest that any job may run, in seconds over all its attempts.", gt=0
    )
    check_interval_s: float = _setting(
        5.0, "Seconds between looks at training policies and canaries.", gt=0
    )


def _parse_labels(entries: tuple[str, ...]) -> tuple[str, ...]:
    """Checks `TASK=LABEL,LABEL`."""
    for entry in entries:
        task, _, labels = entry.partition("=")
        if not task or not all(labels.split(",")):
            raise ValueError(f"{entry!r} is not TASK=LABEL,LABEL")
    return entries


class FeedbackSettings(_Frozen):
    labels: Annotated[tuple[str, ...], AfterValidator(_parse_labels)] = _setting(
        (),
        "The labels of a task, as TASK=LABEL,LABEL; feedback with another one is refused. Tasks "
        "that are not named take any label.",
    )

    @property
    def labels_by_task(self) -> dict[str, frozenset[str]]:
        return {
            task: frozenset(labels.split(","))
            for task, _, labels in (entry.partition("=") for entry in self.labels)
        }


class LogSettings(_Frozen):
    level: Literal["debug", "info", "warning", "error"] = _setting("info", "Least level shown.")
    format: Literal["text", "json"] = _setting("text", "For people, or one JSON object per line.")


class Settings(_Frozen):
    data_dir: UserPath = _setting(
        "~/.local/share/graftwork", "Where the registry, its adapters and the journal are kept."
    )
    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    adapters: AdapterSettings = AdapterSettings()
    grpc: GrpcSettings = GrpcSettings()
    metrics: MetricsSettings = MetricsSettings()
    limits: LimitSettings = LimitSettings()
    journal: JournalSettings = JournalSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    training: TrainingSettings = TrainingSettings()
    log: LogSettings = LogSettings()

    @property
    def base_dir(self) -> Path:
        return self.data_dir / "base"

    @property
    def training_dir(self) -> Path:
        return self.data_dir / "training"

    @property
    def adapter_store_dir(self) -> Path:
        return self.adapters.store_dir or self.data_dir / "adapters"

    @property
    def journal_place(self) -> str | Path:
        """A database URL, or the path of an SQLite file."""
        return self.journal.url or self.data_dir / "journal.sqlite3"


class Key(typing.NamedTuple):
    """One leaf of the tree: `engine.block_size`, or `data_dir` whose section is empty."""

    section: str
    name: str
    field: FieldInfo

    @property
    def path(self) -> tuple[str, ...]:
        return (self.section, self.name) if self.section else (self.name,)

    def __str__(self) -> str:
        return ".".join(self.path)

    @property
    def variable(self) -> str:
        return ENV_PREFIX + "__".join(self.path).upper()

    @property
    def flag(self) -> str:
        extra = self.field.json_schema_extra
        short = extra.get("flag") if isinstance(extra, dict) else None
        return str(short) if short else "--" + "-".join(self.path).replace("_", "-")

    @property
    def parameter(self) -> str:
        """The name of the flag's value among click's parameters."""
        return "__".join(self.path)


def keys() -> Iterator[Key]:
    """Every leaf of the tree, in its order."""
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            for leaf, leaf_field in field.annotation.model_fields.items():
                yield Key(name, leaf, leaf_field)
        else:
            yield Key("", name, field)


def plain_type(annotation: Any) -> Any:
    """The annotation without `Annotated` and without `| None`."""
    if typing.get_origin(annotation) is Annotated:
        return plain_type(typing.get_args(annotation)[0])
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        [kind] = [part for part in typing.get_args(annotation) if part is not types.NoneType]
        return plain_type(kind)
    return annotation
