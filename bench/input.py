"""Images per second of the input pipeline, with and without the deck's augmentation.

The baselines, in the same run and in turns, are the deck's Keras ImageDataGenerator, and the limit: decoding and
resizing alone, on as many threads as there are cores.

    python bench/input.py [--images 1600] [--size 224]
"""

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from thyroid.imaging import geometry, images, phantom
from thyroid.model import inputs
from thyroid.model.artefact import sha256
from thyroid.train import deck

RUNS = 5
FRAME = (560, 360)


def write(folder: Path, count: int) -> pd.DataFrame:
    """Write phantom scan areas of 560x360 pixels, in one folder per class as in the deck."""
    rows = []
    for number in range(count):
        label = "BM"[number % 2]
        area = geometry.normal(phantom.draw(label, patient=number // 4 + 1, image=number % 4 + 1).image)
        file = folder / label / f"{label}_{number:05d}.jpg"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(images.encode(cv2.resize(area, FRAME)))
        rows.append((str(file), sha256(file)))
    return pd.DataFrame(rows, columns=["file", "sha256"])


def rate(count: int, work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1600)
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args()
    count, size = arguments.images, arguments.size
    warnings.filterwarnings("ignore", "This ImageDataGenerator specifies", UserWarning)
    with tempfile.TemporaryDirectory() as temporary:
        table = write(Path(temporary), count)
        moves = inputs.transforms(count, size, (0,))
        generator = deck.generator().flow_from_directory(temporary, target_size=(size, size), batch_size=32)
        cached = inputs.decode(table, size)

        def limit() -> None:
            def one(file: str) -> None:
                image = cv2.imdecode(np.frombuffer(Path(file).read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
                cv2.resize(image, (size, size * FRAME[1] // FRAME[0]), interpolation=cv2.INTER_AREA)

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(one, table["file"]))

        def consume(dataset: object) -> None:
            for _ in dataset:  # type: ignore[attr-defined]
                pass

        contenders: dict[str, Callable[[], None]] = {
            "deck": lambda: consume(generator[batch] for batch in range(len(generator))),
            "cached": lambda: consume(inputs.batches(cached, 32, moves)),
            "uncached": lambda: consume(inputs.batches(inputs.decode(table, size), 32, moves)),
            "plain": lambda: consume(inputs.batches(inputs.decode(table, size), 32)),
            "limit": limit,
        }
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(RUNS):
            for name, work in contenders.items():
                rates[name].append(rate(count, work))
    words = {
        "deck": "ImageDataGenerator, augmented",
        "cached": "ours, augmented, decoded before",
        "uncached": "ours, augmented, decoded in the same pass",
        "plain": "ours, decoded, not augmented",
        "limit": "decode and resize alone",
    }
    for name, values in rates.items():
        spread = f"[{min(values):.0f}, {max(values):.0f}]"
        print(f"{words[name]:<44}{statistics.median(values):>8.0f} images/s {spread}")
    median = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        "cached_vs_deck": median["cached"] / median["deck"],
        "uncached_vs_deck": median["uncached"] / median["deck"],
        "plain_vs_limit": median["plain"] / median["limit"],
    }
    print(json.dumps({"bench": "input", "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()}}))


if __name__ == "__main__":
    main()
