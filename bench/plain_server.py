"""The simplest server: KServe with Keras' predict in the handler. A peer of bench/serving.py."""

import argparse
import base64
import sys
from pathlib import Path
from typing import Any

arguments = argparse.ArgumentParser()
arguments.add_argument("--model", type=Path, required=True)
arguments.add_argument("--port", type=int, required=True)
options = arguments.parse_args()
sys.argv = sys.argv[:1]  # kserve also parses the command line

import cv2  # noqa: E402
import keras  # noqa: E402
import kserve  # noqa: E402
import numpy as np  # noqa: E402


class Plain(kserve.Model):
    def load(self) -> bool:
        self.network = keras.saving.load_model(options.model, compile=False)
        self.size = self.network.input_shape[1]
        self.ready = True
        return True

    def predict(self, payload: Any, headers: Any = None) -> dict[str, Any]:
        images = []
        for instance in payload["instances"]:
            data = np.frombuffer(base64.b64decode(instance["image"]["b64"]), np.uint8)
            images.append(
                cv2.resize(
                    cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), (self.size, self.size)
                )
            )
        return {"predictions": self.network.predict(np.stack(images), verbose=0).tolist()}


if __name__ == "__main__":
    model = Plain("thyroid")
    model.load()
    kserve.ModelServer(http_port=options.port, enable_grpc=False).start([model])
