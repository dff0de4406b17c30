"""LitServe with OpenVINO. A peer of bench/serving.py: one process per core, or one process with all cores.

It accepts JSON, but no image as a body.
"""

from typing import Any

import litserve
import work

options = work.options()
workers = 1 if options.mode == "latency" else work.CORES


class Peer(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.network = work.Network(options.model, options.precision, "latency", work.CORES // workers)

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        instance: dict[str, Any] = request["instances"][0]
        return instance

    def predict(self, instance: dict[str, Any]) -> dict[str, Any]:
        return self.network.look(instance)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return {"predictions": [output]}


if __name__ == "__main__":
    server = litserve.LitServer(
        Peer(), accelerator="cpu", workers_per_device=workers, timeout=120, healthcheck_path="/ready"
    )
    server.run(port=options.port, log_level="warning", generate_client_file=False, access_log=False)
