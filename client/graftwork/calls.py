"""Makes the calls of the sync client: deadline, metadata, and errors of `graftwork.errors`."""

from collections.abc import Generator, Iterator
from typing import Any

import grpc

from graftwork.channel import Connection
from graftwork.errors import from_rpc_error


class Calls:
    """A channel, and how each call on it is made. `method` is always one of a stub's."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        target, options = connection.target, connection.options
        if connection.credentials is None:
            self.channel = grpc.insecure_channel(target, options=options)
        else:
            self.channel = grpc.secure_channel(target, connection.credentials, options=options)

    def unary(self, method: Any, request: Any, timeout: float | None) -> Any:
        try:
            return self.start(method, request, timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def stream(
        self, method: Any, request: Any, timeout: float | None
    ) -> Generator[Any, None, None]:
        """Leaving the generator cancels the call."""
        call = self.start(method, request, timeout)
        try:
            yield from call
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    def upload(self, method: Any, requests: Iterator[Any], timeout: float | None) -> Any:
        """What `requests` raises is raised here: gRPC itself would lose it in its thread."""
        raised: list[Exception] = []

        def watched() -> Iterator[Any]:
            try:
                yield from requests
            except Exception as error:
                raised.append(error)
                raise

        try:
            return self.start(method, watched(), timeout)
        except grpc.RpcError as error:
            if raised:
                raise raised[0] from error
            raise from_rpc_error(error) from error

    def start(self, method: Any, request: Any, timeout: float | None) -> Any:
        """The call itself, with gRPC's own errors."""
        return method(
            request,
            timeout=self._connection.timeout_s if timeout is None else timeout,
            metadata=self._connection.metadata,
        )
