"""Asks the endpoint with NVIDIA's client; run by test_serve.py: PROTOCOL DATATYPE PORT FILE X Y WIDTH HEIGHT."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np


def main() -> None:
    protocol, datatype, port, file, *box = sys.argv[1:]
    triton = importlib.import_module(f"tritonclient.{protocol}")
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("thyroid")
    assert client.get_model_metadata("thyroid")
    if datatype == "BYTES":
        data = np.array([Path(file).read_bytes()], dtype=np.object_)
    else:
        from thyroid import images

        data = images.decode(Path(file).read_bytes())[None]
    image = triton.InferInput("image", list(data.shape), datatype)
    image.set_data_from_numpy(data)
    roi = triton.InferInput("roi", [1, 4], "INT64")
    roi.set_data_from_numpy(np.array([box], np.int64))
    answers = []
    for outputs in (None, [triton.InferRequestedOutput("probability"), triton.InferRequestedOutput("decision")]):
        for version in ("", "1"):
            answer = client.infer("thyroid", [image, roi], outputs=outputs, model_version=version)
            answers.append(float(answer.as_numpy("probability")[0, 1]))
            assert answer.as_numpy("decision").tolist()[0] in (b"benign", b"malignant")
    client.close()
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
