"""The engine and what it stands on, built from the settings."""

import os
from concurrent.futures import Executor
from dataclasses import dataclass

import torch
from graftwork_adapters.limits import AdapterLimits
from graftwork_adapters.store import ImmutableStore

from graftwork_server.adapter_loader import AdapterLoader
from graftwork_server.attention import allocate_kv_caches, kv_bytes_per_block
from graftwork_server.base_model import BaseModel
from graftwork_server.calls import Limits
from graftwork_server.commands import CommandQueue
from graftwork_server.compositions import Compositions
from graftwork_server.device_adapters import DeviceAdapters
from graftwork_server.dispatcher import Dispatcher
from graftwork_server.engine import Engine
from graftwork_server.errors import StartupError
from graftwork_server.limits import SchedulerConfig
from graftwork_server.metrics import Metrics
from graftwork_server.residency import Tiers
from graftwork_server.runner import Runner
from graftwork_server.sampler import Sampler
from graftwork_server.scheduler import Scheduler
from graftwork_server.settings import Settings

# On two cores the default model prefills about 3 tokens per millisecond.
CPU_PREFILL_TOKENS_WHILE_DECODING = 96
# A step of few rows takes as long as the weights take to be read, so that these cost little.
CPU_BACKGROUND_TOKENS = 2


@dataclass(frozen=True, slots=True)
class EngineParts:
    """An engine that is not started."""

    engine: Engine
    scheduler: Scheduler
    tiers: Tiers
    dispatcher: Dispatcher
    compositions: Compositions
    request_limits: Limits


def build_engine(
    settings: Settings,
    base: BaseModel,
    store: ImmutableStore,
    limits: AdapterLimits,
    *,
    loading: Executor,
    metrics: Metrics,
) -> EngineParts:
    """`loading` runs the loads of adapters. Raises StartupError."""
    scheduler = Scheduler(scheduler_config(settings, base))
    compositions = Compositions()
    loader = AdapterLoader(
        store,
        limits,
        base,
        compositions,
        factor_dtype_of(settings, base),
        is_engine_busy=lambda: scheduler.num_running > 0,
    )
    commands = CommandQueue()
    device_adapters = DeviceAdapters(base, max_slots=settings.adapters.device_slots)
    tiers = Tiers(
        scheduler,
        device_adapters,
        commands,
        metrics,
        load=loader.load,
        executor=loading,
        host_budget_bytes=settings.adapters.host_cache_bytes,
    )
    runner = build_runner(settings, base, device_adapters, scheduler.config.num_blocks)
    engine = Engine(scheduler, runner, tiers, commands, metrics)
    return EngineParts(
        engine,
        scheduler,
        tiers,
        Dispatcher(
            engine,
            max_in_flight=max_in_flight(settings),
            interval_s=settings.grpc.stream_interval_ms / 1000,
        ),
        compositions,
        limits_of(settings, scheduler.config),
    )


def scheduler_config(settings: Settings, base: BaseModel) -> SchedulerConfig:
    """What the settings, the base and the cache's memory allow together."""
    engine = settings.engine
    per_block = kv_bytes_per_block(kv_shapes(base), engine.block_size, base.dtype)
    num_blocks = int(engine.kv_cache_bytes) // per_block
    if num_blocks < 1:
        raise StartupError(
            f"engine.kv_cache_bytes: is {int(engine.kv_cache_bytes)}, and one block of this model "
            f"takes {per_block}"
        )
    max_context = min(base.context_length, num_blocks * engine.block_size)
    if engine.max_context_tokens is not None:
        max_context = min(max_context, engine.max_context_tokens)
    prefill_cap = engine.max_prefill_tokens_while_decoding
    if prefill_cap is None and base.device.type == "cpu":
        prefill_cap = CPU_PREFILL_TOKENS_WHILE_DECODING
    return SchedulerConfig(
        max_num_sequences=engine.max_num_sequences,
        max_tokens_per_step=engine.max_tokens_per_step,
        block_size=engine.block_size,
        num_blocks=num_blocks,
        max_context=max_context,
        max_queued=max_in_flight(settings),
        max_slots=settings.adapters.device_slots,
        max_prefill_tokens_while_decoding=prefill_cap,
        max_background_tokens=CPU_BACKGROUND_TOKENS if base.device.type == "cpu" else None,
        prefix_cache=engine.prefix_cache,
    )


def build_runner(
    settings: Settings, base: BaseModel, adapters: DeviceAdapters, num_blocks: int
) -> Runner:
    caches = allocate_kv_caches(
        kv_shapes(base),
        num_blocks=num_blocks,
        block_size=settings.engine.block_size,
        dtype=base.dtype,
        device=base.device,
    )
    sampler = Sampler(base.vocab_size, base.device)
    return Runner(base, adapters, sampler, caches, block_size=settings.engine.block_size)


def kv_shapes(base: BaseModel) -> list[tuple[int, int]]:
    return [(layer.num_kv_heads, layer.head_dim) for layer in base.layers]


def factor_dtype_of(settings: Settings, base: BaseModel) -> torch.dtype | None:
    """What low-rank factors are rounded to; None keeps the file's precision."""
    rounded = settings.adapters.factor_dtype == "bfloat16" or (
        settings.adapters.factor_dtype == "auto" and base.quantization != "none"
    )
    return torch.bfloat16 if rounded else None


def max_in_flight(settings: Settings) -> int:
    """Sequences that run or wait; more are refused at once."""
    return settings.engine.max_num_sequences + settings.engine.max_queued_requests


def limits_of(settings: Settings, config: SchedulerConfig) -> Limits:
    limits = settings.limits
    return Limits(
        max_context_tokens=config.max_context,
        max_new_tokens=limits.max_new_tokens,
        default_max_tokens=limits.default_max_tokens,
        max_n=limits.max_n,
        max_logprobs=limits.max_logprobs,
        max_stop_strings=limits.max_stop_strings,
        max_queued_requests=settings.engine.max_queued_requests,
        max_adapter_rank=settings.adapters.max_rank,
        max_device_adapters=settings.adapters.device_slots,
        max_completions=limits.max_completions,
        max_prompt_lookup_tokens=limits.max_prompt_lookup_tokens,
    )


def usable_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
