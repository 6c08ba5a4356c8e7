"""A servicer behind a real gRPC server."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc


@contextlib.asynccontextmanager
async def serving_alone(
    add: Callable[[Any, grpc.aio.Server], None], servicer: object
) -> AsyncIterator[str]:
    """Its address; `add` is the generated function that adds such a servicer."""
    server = grpc.aio.server()
    add(servicer, server)
    port = server.add_insecure_port("localhost:0")
    await server.start()
    try:
        yield f"localhost:{port}"
    finally:
        await server.stop(None)
