"""What every server serves: adapters on the disk, and GenerationService and AdapterService."""

import contextlib
import secrets
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import grpc
from graftwork.v1 import (
    adapter_service_pb2,
    adapter_service_pb2_grpc,
    generation_service_pb2,
    generation_service_pb2_grpc,
)
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.prompt_builder import PromptBuilder
from graftwork_adapters.registration import Registrar
from graftwork_adapters.registry import Registry
from graftwork_adapters.service import AdapterServicer
from graftwork_adapters.store import ImmutableStore

from graftwork_server.adapter_choice import AdapterChooser
from graftwork_server.base_model import BaseModel
from graftwork_server.constraints import ConstraintCompiler
from graftwork_server.detokenizer import Detokenizer
from graftwork_server.engine_parts import EngineParts
from graftwork_server.generation_log import GenerationLog, template_hash
from graftwork_server.generation_service import GenerationParts, GenerationServicer
from graftwork_server.ids import IdGenerator
from graftwork_server.live_versions import LiveVersions
from graftwork_server.metrics import Metrics
from graftwork_server.settings import Settings
from graftwork_server.validate import RequestValidator
from graftwork_server.version_prompts import VersionPrompts

GENERATION_SERVICE = generation_service_pb2.DESCRIPTOR.services_by_name["GenerationService"]
ADAPTER_SERVICE = adapter_service_pb2.DESCRIPTOR.services_by_name["AdapterService"]


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """The versions on the disk, and what names them."""

    limits: AdapterLimits
    store: ImmutableStore
    registry: Registry

    @classmethod
    def open(
        cls, settings: Settings, checking: Executor, stack: contextlib.AsyncExitStack
    ) -> "AdapterFiles":
        """Locks the data folder's adapters for this process, until the stack is left."""
        limits = AdapterLimits(
            max_rank=settings.adapters.max_rank,
            max_weights_bytes=settings.adapters.max_upload_bytes,
            require_verified_base=settings.adapters.require_verified_base,
        )
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        store = ImmutableStore(settings.adapter_store_dir, limits)
        stack.callback(store.close)
        registry = Registry(settings.data_dir / "registry.sqlite3", store, checking)
        stack.callback(registry.close)
        return cls(limits, store, registry)


def add_generation_service(
    server: grpc.aio.Server,
    base: BaseModel,
    files: AdapterFiles,
    engine: EngineParts,
    *,
    metrics: Metrics,
    ids: IdGenerator,
    log: GenerationLog | None,
    preparing: Executor,
) -> str:
    """Returns the service's name. `preparing` runs what a request needs before the engine."""
    parts = GenerationParts(
        base=base,
        adapters=AdapterChooser(files.registry, engine.compositions),
        dispatcher=engine.dispatcher,
        validator=RequestValidator(
            engine.request_limits, base.vocab_size, lambda: secrets.randbits(64)
        ),
        prompts=PromptBuilder(base.tokenizer),
        version_prompts=VersionPrompts(files.store, files.limits),
        constraints=ConstraintCompiler(base.tokenizer, base.end_token_ids, base.vocab_size),
        detokenizer=Detokenizer(base.tokenizer),
        limits=engine.request_limits,
        metrics=metrics,
        executor=preparing,
        ids=ids,
        log=log,
        template_hash=template_hash(base.tokenizer.chat_template),
    )
    generation_service_pb2_grpc.add_GenerationServiceServicer_to_server(  # type: ignore[no-untyped-call]
        GenerationServicer(parts), server
    )
    return GENERATION_SERVICE.full_name


def add_adapter_service(
    server: grpc.aio.Server,
    base: BaseModel,
    files: AdapterFiles,
    engine: EngineParts,
    *,
    metrics: Metrics,
    roots: Sequence[Path],
    checking: Executor,
) -> str:
    """Returns the service's name. `checking` runs registrations."""
    live_versions = LiveVersions(files.registry, metrics)
    live_versions.report_all()
    registrar = Registrar(files.registry, files.store, base, roots, files.limits)
    adapter_service_pb2_grpc.add_AdapterServiceServicer_to_server(  # type: ignore[no-untyped-call]
        AdapterServicer(registrar, engine.tiers, checking, live_versions.report), server
    )
    return ADAPTER_SERVICE.full_name
