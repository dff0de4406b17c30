"""The life of the server: it starts the protocols, drains on SIGTERM, and closes.

KServe's REST and gRPC servers are in `protocol`, the models and their hot swap in `state`.
"""

import asyncio
import gc
import os
import signal
import sys
from typing import Any

from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from uvicorn.loops.auto import auto_loop_factory

from thyroid import memory
from thyroid.serve import limits
from thyroid.serve.options import ServeOptions
from thyroid.serve.protocol.dataplane import ThyroidDataPlane
from thyroid.serve.protocol.grpc import GrpcServer
from thyroid.serve.protocol.rest import RestServer
from thyroid.serve.state import Loader, State

LAST_SECONDS = 0.2
"""Seconds in which the connections that were accepted last send their request and get their 503."""

os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
"""A signal that ends a fork of any library must not reach the server's own loop through the inherited socket."""


class Server:
    """Serves the champion of a registry and the champion before it, or one artefact, until a signal stops it.

    Args:
        options: What to serve, and where.
    """

    def __init__(self, options: ServeOptions) -> None:
        """Create a server without models; `run` loads them."""
        self.state = State(options)
        self.loader = Loader(self.state)
        dataplane = ThyroidDataPlane(self.state)
        extension = ModelRepositoryExtension(model_registry=self.state.models)
        self._rest = RestServer(dataplane, extension, self.state)
        self._grpc = None
        if options.grpc_port is not None:
            self._grpc = GrpcServer(options.grpc_port, dataplane, extension, self.state)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            InputError: The model cannot be served.
        """
        # The default is 5 ms. The event loop waits that long for every thread that decodes.
        sys.setswitchinterval(0.0005)
        memory.return_large(8 << 20)  # larger than usual frames, for which memory that was kept is faster
        try:
            with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:  # uvloop's, if it is installed
                runner.run(self._run())
        finally:
            if self.state.shadow is not None:
                self.state.shadow.close()
            if self.state.decisions is not None:
                self.state.decisions.close()
        if self.loader.failure is not None:
            raise self.loader.failure

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        gc.freeze()  # these objects stay: the collector need not look at them
        servers = [self._rest.start()]
        if self._grpc is not None:
            servers.append(self._grpc.start(4))
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        serving: asyncio.Future[Any] = asyncio.ensure_future(asyncio.gather(*servers))
        background = (self.loader.watch(stop), self.loader.test_models(), self._rest.sweep())
        tasks = [asyncio.create_task(task) for task in background]
        stopped: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
        self.state.draining = True
        if self.loader.failure is None and not serving.done():
            await asyncio.sleep(limits.DRAIN)
        await self._close()
        for task in tasks:
            task.cancel()
        self._rest.finish()
        await serving

    async def _close(self) -> None:
        """Accept no new requests, and wait for those that are inside."""
        self.state.closed = True  # otherwise clients that come back would keep the server running for ever
        await self._rest.close()
        if self._grpc is not None:
            await self._grpc.stop()
        await asyncio.sleep(LAST_SECONDS)
        while self.state.admission.inside:
            await asyncio.sleep(0.05)
