"""Command of the training step, see `train.train`.

python -m thyroid.train --data DIR --backbone VGG16 --output DIR
"""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from thyroid import command
from thyroid.command import FLAT
from thyroid.data import tables
from thyroid.model import backbones
from thyroid.train.options import TrainOptions
from thyroid.train.train import train


def run(
    *,
    data: Path,
    output: Path,
    backbone: Annotated[str, Parameter(help=f"One of {', '.join(backbones.BACKBONES)}.")],
    domain: Annotated[str, command.one_of(tables.DOMAINS)] = "",
    options: Annotated[TrainOptions, FLAT] = TrainOptions(),
) -> None:
    """Train one backbone.

    Args:
        data: Data version of thyroid.crop.
        output: Folder for the checkpoint and its history.
        backbone: Name of the backbone.
        domain: normal or cropped; if not given, the data version's first.
        options: How it is trained.
    """
    train(data, output, backbone, domain, options)


main = command.main("python -m thyroid.train", run)

if __name__ == "__main__":
    raise SystemExit(main())
