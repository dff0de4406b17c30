"""The least that an evaluation can do: load the models and predict every image with Keras.

    python bench/predict_only.py ASKED

ASKED is a folder with asked.json, as `bench/evaluation.py` writes it. The file names the models, and for each model the
files and the arrays of images that an evaluation asks it about.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np


def main() -> None:
    folder = Path(sys.argv[1])
    asked = json.loads((folder / "asked.json").read_text())
    decoded = {}
    for name, files in asked["files"].items():
        size = (asked["size"], asked["size"])
        decoded[name] = np.stack([np.asarray(keras.utils.load_img(file, target_size=size)) for file in files])
    for name in asked["arrays"]:
        decoded[name] = np.load(folder / f"{name}.npy")
    for file, sets in asked["models"].items():
        model = keras.models.load_model(file)
        for name in sets:
            model.predict(decoded[name], verbose=0)


if __name__ == "__main__":
    main()
