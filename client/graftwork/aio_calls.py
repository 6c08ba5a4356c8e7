"""Makes the calls of the async client: deadline, metadata, and errors of `graftwork.errors`."""

from collections.abc import AsyncGenerator
from typing import Any

import grpc

from graftwork.channel import Connection
from graftwork.errors import from_rpc_error


class AsyncCalls:
    """A channel, and how each call on it is made. `method` is always one of a stub's."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        target, options = connection.target, connection.options
        if connection.credentials is None:
            self.channel = grpc.aio.insecure_channel(target, options=options)
        else:
            self.channel = grpc.aio.secure_channel(target, connection.credentials, options=options)

    async def unary(self, method: Any, request: Any, timeout: float | None) -> Any:
        try:
            return await self.start(method, request, timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    async def stream(
        self, method: Any, request: Any, timeout: float | None
    ) -> AsyncGenerator[Any, None]:
        """Closing the generator cancels the call."""
        call = self.start(method, request, timeout)
        try:
            async for message in call:
                yield message
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    def start(self, method: Any, request: Any, timeout: float | None) -> Any:
        """The call itself, with gRPC's own errors."""
        return method(
            request,
            timeout=self.connection.timeout_s if timeout is None else timeout,
            metadata=self.connection.metadata,
        )
