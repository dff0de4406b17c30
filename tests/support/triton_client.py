"""Asks the endpoint in every way with NVIDIA's client; run by test_serve.py: PORT GRPC_PORT FILE X Y WIDTH HEIGHT."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from thyroid.imaging import images


def main() -> None:
    port, grpc_port, file, *box = sys.argv[1:]
    data = Path(file).read_bytes()
    tensors = {"BYTES": np.array([data], dtype=np.object_), "UINT8": images.decode(data)[None]}
    answers: list[float] = []
    for protocol, where in (("http", port), ("grpc", grpc_port)):
        triton = importlib.import_module(f"tritonclient.{protocol}")
        client = triton.InferenceServerClient(f"127.0.0.1:{where}")
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("thyroid")
        assert client.get_model_metadata("thyroid")
        for datatype, tensor in tensors.items():
            answers += asked(triton, client, datatype, tensor, box)
        client.close()
    print(json.dumps(answers))


def asked(triton: Any, client: Any, datatype: str, tensor: np.ndarray, box: list[str]) -> list[float]:
    """Return probabilities of malignancy: with chosen or all outputs, from the served or a numbered version."""
    image = triton.InferInput("image", list(tensor.shape), datatype)
    image.set_data_from_numpy(tensor)
    roi = triton.InferInput("roi", [1, 4], "INT64")
    roi.set_data_from_numpy(np.array([box], np.int64))
    answers = []
    for outputs in (None, [triton.InferRequestedOutput("probability"), triton.InferRequestedOutput("decision")]):
        for version in ("", "1"):
            answer = client.infer("thyroid", [image, roi], outputs=outputs, model_version=version)
            answers.append(float(answer.as_numpy("probability")[0, 1]))
            assert answer.as_numpy("decision").tolist()[0] in (b"benign", b"malignant")
    return answers


if __name__ == "__main__":
    main()
