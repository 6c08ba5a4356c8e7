"""Constructs and wires everything, starts it, and stops it in order. The only module that does."""

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import torch
from graftwork.v1 import feedback_service_pb2, feedback_service_pb2_grpc
from graftwork_adapters.background import background_executor
from graftwork_adapters.registry import Registry
from graftwork_trainer.datasets.redaction import Redactor
from graftwork_trainer.jobs.launcher import WorkerSettings
from graftwork_trainer.journal.errors import JournalNotUsable
from graftwork_trainer.journal.journal import Journal
from graftwork_trainer.journal.judge import Rules
from graftwork_trainer.journal.service import FeedbackServicer
from graftwork_trainer.methods.catalogue import trainable_methods
from graftwork_trainer.wiring import DATASETS, Training, TrainingSettings
from grpc_health.v1 import health_pb2

from graftwork_server import attention
from graftwork_server.base_model import BaseModel
from graftwork_server.core_services import (
    AdapterFiles,
    add_adapter_service,
    add_generation_service,
)
from graftwork_server.default_model import DISPLAY_NAME, ensure_default_model
from graftwork_server.dispatcher import Dispatcher
from graftwork_server.engine_parts import EngineParts, build_engine, usable_cores
from graftwork_server.errors import EngineDied, StartupError
from graftwork_server.generation_log import template_hash
from graftwork_server.grpc_server import add_health, bind, new_grpc_server
from graftwork_server.ids import IdGenerator
from graftwork_server.kernels.build import load_kernels
from graftwork_server.metrics import Metrics, MetricsServer
from graftwork_server.scheduler import Scheduler
from graftwork_server.settings import Settings
from graftwork_server.shared_weights import remove_other_bases
from graftwork_server.stored_base import load_shared_base
from graftwork_server.version import VERSION

logger = logging.getLogger(__name__)

# Served where the journal is enabled.
FEEDBACK_SERVICE = feedback_service_pb2.DESCRIPTOR.services_by_name["FeedbackService"].full_name


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that answers."""

    port: int
    metrics_port: int
    base: BaseModel
    scheduler: Scheduler
    dispatcher: Dispatcher
    registry: Registry
    journal: Journal | None  # None where it is not enabled


def load_base(settings: Settings) -> BaseModel:
    """The base that the settings name, on its device, its weights in DATA_DIR/base."""
    device = settings.model.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise StartupError("model.device: is cuda, but torch sees no CUDA device; use cpu")
    if device == "cpu":
        load_kernels()
    attention.register()
    quantization = settings.model.quantization
    path = settings.model.path
    return load_shared_base(
        path or ensure_default_model(),
        settings.base_dir,
        name=path or DISPLAY_NAME,
        quantization="int8" if quantization == "auto" else quantization,
        device=torch.device(device),
    )


@contextlib.asynccontextmanager
async def running_server(settings: Settings, base: BaseModel) -> AsyncIterator[RunningServer]:
    """Serves while inside; drains, within the grace time, on the way out. Takes the base over."""
    async with contextlib.AsyncExitStack() as stack:
        metrics = new_metrics(settings, base)
        # Apart, so that a load that requests wait for is not held up by a registration.
        loading = stack.enter_context(background_executor())
        checking = stack.enter_context(background_executor())
        preparing = stack.enter_context(ThreadPoolExecutor(2, "prepare"))

        files = AdapterFiles.open(settings, checking, stack)
        remove_other_bases(base, settings.base_dir)  # no other server has the data folder now
        ids = IdGenerator()
        journal = open_journal(settings, metrics, ids, stack)
        redactor = (
            Redactor(settings.training_dir / DATASETS, journal.deleted_items) if journal else None
        )
        engine = build_engine(
            settings, base, files.store, files.limits, loading=loading, metrics=metrics
        )
        start_engine(engine, settings, stack)
        dispatcher = engine.dispatcher

        server = new_grpc_server(settings.grpc, metrics, lambda: dispatcher.is_draining)
        services = [
            add_generation_service(
                server,
                base,
                files,
                engine,
                metrics=metrics,
                ids=ids,
                log=journal,
                preparing=preparing,
            ),
            add_adapter_service(
                server,
                base,
                files,
                engine,
                metrics=metrics,
                roots=settings.adapters.roots,
                checking=checking,
            ),
            *add_feedback_service(server, journal, redactor, stack),
        ]
        training = build_training(
            settings,
            base,
            journal=journal,
            redactor=redactor,
            registry=files.registry,
            metrics=metrics,
            ids=ids,
        )
        if training is not None:
            stack.callback(training.close)
            services += training.add_to(server)
        port = bind(server, settings.grpc)
        metrics_port = serve_metrics(settings, metrics, stack)
        async with answering(server, services, dispatcher, training, settings.grpc.drain_grace_s):
            yield RunningServer(
                port, metrics_port, base, engine.scheduler, dispatcher, files.registry, journal
            )


@contextlib.asynccontextmanager
async def answering(
    server: grpc.aio.Server,
    services: Sequence[str],
    dispatcher: Dispatcher,
    training: Training | None,
    drain_grace_s: float,
) -> AsyncIterator[None]:
    """Answers requests and runs training jobs while inside; drains on the way out."""
    health = add_health(server, services)
    await server.start()
    for service in ("", *services):
        await health.set(service, health_pb2.HealthCheckResponse.SERVING)
    try:
        if training is not None:
            await training.start()
        yield
    finally:
        await health.enter_graceful_shutdown()
        if training is not None:
            await training.stop()
        if not await dispatcher.drain(drain_grace_s):
            logger.warning("%d requests were cut off", dispatcher.num_in_flight)
        await server.stop(grace=1.0)


async def serve(
    settings: Settings, base: BaseModel, on_ready: Callable[[RunningServer], None]
) -> None:
    """Serves until SIGTERM or SIGINT; `on_ready` is called once requests are answered.

    Raises EngineDied: the process must be started anew.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running_server(settings, base) as server:
        spare_long_collections()
        on_ready(server)
        endings = [asyncio.create_task(e.wait()) for e in (stop, server.dispatcher.engine_failed)]
        await asyncio.wait(endings, return_when=asyncio.FIRST_COMPLETED)
        for ending in endings:
            ending.cancel()
        if server.dispatcher.engine_failed.is_set():
            raise EngineDied
        logger.info("draining: %d requests in flight", server.dispatcher.num_in_flight)


def spare_long_collections() -> None:
    """Takes what start-up made out of the garbage collector's sight.

    Libraries leave about a million objects behind; a full collection over them stops every thread
    for 300 ms, and would free a few megabytes. Call it once, when the server is up. It starts the
    collector where it was stopped.
    """
    gc.freeze()
    gc.enable()


def start_engine(engine: EngineParts, settings: Settings, stack: contextlib.AsyncExitStack) -> None:
    engine.engine.start(
        engine.dispatcher.publish,
        engine.dispatcher.engine_died,
        threads=settings.engine.threads or usable_cores(),
    )
    stack.callback(engine.engine.stop)


def serve_metrics(settings: Settings, metrics: Metrics, stack: contextlib.AsyncExitStack) -> int:
    """Returns the port."""
    server = MetricsServer(metrics.registry, settings.metrics.host, settings.metrics.port)
    stack.callback(server.stop)
    return server.port


def new_metrics(settings: Settings, base: BaseModel) -> Metrics:
    metrics = Metrics(max_adapter_labels=settings.metrics.max_adapter_labels)
    metrics.set_build(version=VERSION)
    metrics.set_model(
        model=base.name,
        digest=base.digest,
        quantization=base.quantization,
        device=base.device.type,
    )
    return metrics


def open_journal(
    settings: Settings, metrics: Metrics, ids: IdGenerator, stack: contextlib.AsyncExitStack
) -> Journal | None:
    """None where the journal is not enabled."""
    if not settings.journal.enabled:
        return None
    rules = Rules(
        retention_days=settings.journal.retention_days or None,
        labels=settings.feedback.labels_by_task,
    )
    try:
        journal = Journal.open(
            settings.journal_place,
            rules,
            metrics,
            new_id=ids.new,
            queue_bytes=int(settings.journal.queue_bytes),
        )
    except JournalNotUsable as error:
        raise StartupError(str(error)) from error
    stack.callback(journal.close)
    return journal


def add_feedback_service(
    server: grpc.aio.Server,
    journal: Journal | None,
    redactor: Redactor | None,
    stack: contextlib.AsyncExitStack,
) -> list[str]:
    """Returns the names of what it has added: nothing without a journal."""
    if journal is None or redactor is None:
        return []
    reading = stack.enter_context(ThreadPoolExecutor(2, "journal-read"))
    feedback_service_pb2_grpc.add_FeedbackServiceServicer_to_server(  # type: ignore[no-untyped-call]
        FeedbackServicer(journal, reading, redactor.redact), server
    )
    reading.submit(redactor.catch_up)
    return [FEEDBACK_SERVICE]


def build_training(
    settings: Settings,
    base: BaseModel,
    *,
    journal: Journal | None,
    redactor: Redactor | None,
    registry: Registry,
    metrics: Metrics,
    ids: IdGenerator,
) -> Training | None:
    """None where training is not enabled, or there is no journal to keep its jobs."""
    if not settings.training.enabled or journal is None or redactor is None:
        return None
    wanted = settings.training
    workers = WorkerSettings(
        threads=wanted.threads,
        niceness=wanted.niceness,
        scheduling=wanted.scheduling,
        max_duration_s=wanted.max_job_duration_s,
    )
    return Training(
        TrainingSettings(workers, check_interval_s=wanted.check_interval_s),
        journal=journal,
        redactor=redactor,
        adapters=registry,
        registry=metrics.registry,
        data=settings.training_dir,
        base=settings.base_dir / base.digest.removeprefix("sha256:"),
        template_hash=template_hash(base.tokenizer.chat_template),
        methods=trainable_methods().keys(),
        new_id=ids.new,
    )
