"""MLServer with OpenVINO. A peer of bench/serving.py: a custom route in one process."""

import asyncio
import socket
from typing import Any

import fastapi
import work
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.handlers import custom_handler

options = work.options()


def free_port() -> int:
    """Return a free port, since the number after the HTTP port can be another peer's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Peer(MLModel):
    async def load(self) -> bool:
        self.network = work.Network(options.model, options.precision, options.mode)
        self.pool = self.network.pool()
        return True

    @custom_handler(rest_path="/ready", rest_method="GET")
    async def is_ready(self) -> bool:
        return True

    @custom_handler(rest_path="/predict")
    async def answer(self, request: fastapi.Request) -> Any:
        body, kind = await request.body(), request.headers["content-type"]
        return await asyncio.get_running_loop().run_in_executor(self.pool, self.network.answer, body, kind)


async def main() -> None:
    settings = Settings(
        host="127.0.0.1",
        http_port=options.port,
        grpc_port=free_port(),
        metrics_endpoint=None,
        parallel_workers=0,
        debug=False,
    )
    await MLServer(settings).start([ModelSettings(name="peer", implementation=Peer)])


if __name__ == "__main__":
    asyncio.run(main())
