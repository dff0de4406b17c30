"""Adds what tells descriptors to a network in OpenVINO's form."""

from pathlib import Path
from typing import Any

import numpy as np


def results(model: Any, descriptors: Path) -> list[Any]:
    """Return two more results of a network: its frozen features [n, d], and a map of each finding [n, h, w, k].

    The mean of a finding's map and its bias make its logit, so that the map shows exactly where the finding is seen.

    Args:
        model: `openvino.Model` of a training's graph, with the outputs "features" and "frozen_maps".
        descriptors: File of `descriptors.head.Head`.
    """
    from openvino import opset8

    with np.load(descriptors, allow_pickle=False) as stored:
        weight = stored["weight"].astype(np.float32)
    map_ = model.output("frozen_maps:0").node.input_value(0)
    # A convolution takes the map in the layout in which the network has it, which halves what the maps cost.
    kernel = np.ascontiguousarray(weight.T[..., None, None])
    first = opset8.transpose(map_, opset8.constant(np.array([0, 3, 1, 2])))
    found = opset8.convolution(first, opset8.constant(kernel), [1, 1], [0, 0], [0, 0], [1, 1])
    weighed = opset8.transpose(found, opset8.constant(np.array([0, 2, 3, 1])))
    weighed.output(0).get_tensor().set_names({"descriptor_maps:0"})
    return [model.output("features:0").node, opset8.result(weighed)]
