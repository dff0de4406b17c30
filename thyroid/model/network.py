"""Runs a trained model as one graph, which the training traces once for everything that uses the model later.

Loading and tracing a deep backbone takes longer than running a few hundred small images. Probabilities, maps of
evidence, pooled features and frozen features are therefore outputs of one graph, which the training writes next to its
checkpoint. The evaluation runs that file, and OpenVINO's form is made from it. An image that was run before is not run
again.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thyroid import progress
from thyroid.data.classes import BINARY, Classes
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.model import artefact, explain, inputs
from thyroid.model.backend import XLA, keras, tf
from thyroid.records.train import TrainRecord

GRAPH = "network.pb"
"""File of a training with a serialised TensorFlow GraphDef, from uint8 "batch" [n, size, size, 3] to `OUTPUTS`."""

_LARGE = 512  # a constant of more bytes is a weight, not a shape or an axis

OUTPUTS = ("probability", "evidence", "pooled", "features")
"""Names of the graph's outputs. Trainings of older releases have no pooled features, and the last one exists only if
training left blocks frozen."""

MAPS = "frozen_maps"
"""Node of the graph with the map that `features` are the mean of. `engine.convert` makes maps of descriptors of it; no
evaluation runs it. Trainings of older releases have none."""


class Network:
    """Runs the graph of a model of `backbones.build` and caches its answers.

    Args:
        name: Name of the model, for people.
        graph: Graph from "batch" to some of `OUTPUTS`, without variables. The graph of a loaded network has no weights,
            either.
        call: Function that runs the graph.

    Attributes:
        has_maps: Whether the graph has frozen features and `MAPS`, by which descriptors are told.
    """

    batch_size = 32

    def __init__(self, name: str, graph: "tf.compat.v1.GraphDef", call: Callable[[tf.Tensor], list[tf.Tensor]]) -> None:
        """Start with an empty cache."""
        self.name, self.graph = name, graph
        self._call = call
        present = {node.name for node in graph.node}
        self._outputs = [output for output in OUTPUTS if output in present]
        self.has_maps = MAPS in present
        self._known: dict[bytes, dict[str, NDArray[np.float32]]] = {}

    @classmethod
    def trace(cls, model: keras.Model, classes: Classes = BINARY, unfrozen: int | None = None) -> "Network":
        """Trace the network of a Keras model with its present weights.

        Args:
            model: Result of `backbones.build`.
            classes: Classes of the model.
            unfrozen: Number of last blocks of the body that do not belong to its frozen part. `features` are taken in
                front of them. None if training froze nothing.
        """
        whole = explain.with_map(model, classes, unfrozen)

        def run(batch: tf.Tensor) -> list[tf.Tensor]:
            outputs = whole(batch, training=False)
            named = [tf.identity(one, name) for one, name in zip(outputs, (*OUTPUTS, MAPS), strict=False)]
            return named[: len(OUTPUTS)]

        image = tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8, "batch")
        call = tf.function(run, [image], jit_compile=XLA)
        return cls(model.name, _frozen(call.get_concrete_function(), (*OUTPUTS, MAPS)), call)

    @classmethod
    def load(cls, folder: Path, training: TrainRecord) -> "Network":
        """Load the network of a finished training.

        Args:
            folder: Folder of the training.
            training: Its record (train.json).

        Raises:
            InputError: The checkpoint or the graph is missing, or is not the one that the training wrote.
        """
        for name, sha256 in training.files.items():
            if not (folder / name).is_file() or artefact.sha256(folder / name) != sha256:
                raise InputError(f"{folder / name}: missing or changed since the training; train again")
        graph = tf.compat.v1.GraphDef.FromString((folder / GRAPH).read_bytes())
        bare, weights = _without_weights(graph)
        names = {node.name for node in graph.node}
        wanted = [f"{name}:0" for name in OUTPUTS if name in names]

        def run(batch: tf.Tensor) -> list[tf.Tensor]:
            given = {"batch": batch} | {name: tf.identity(weight) for name, weight in weights.items()}
            outputs: list[tf.Tensor] = tf.graph_util.import_graph_def(bare, given, wanted, name="")
            return outputs

        size = training.image_size
        image = tf.TensorSpec((None, size, size, 3), tf.uint8)
        return cls(training.backbone, bare, tf.function(run, [image], autograph=False, jit_compile=XLA))

    def probabilities(self, pixels: NDArray[np.uint8], doing: str = "images") -> NDArray[np.float64]:
        """Return the unscaled probabilities of images.

        Args:
            pixels: uint8 [n, size, size, 1 or 3].
            doing: What is computed, in words, for the progress bar.

        Returns:
            float64 [n, classes].

        Raises:
            InputError: A probability is not finite.
        """
        return inputs.finite(self.name, self._answers("probability", pixels, doing).astype(np.float64))

    def evidence(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the maps of evidence float32 [n, h, w] of images, as of `explain.with_map`."""
        return self._answers("evidence", pixels, "heat maps")

    def heat_maps(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return `explain.heat` of every image, uint8 [n, size, size, 1 or 3], as float32 [n, size, size]."""
        return np.stack([explain.heat(one, pixels.shape[1]) for one in self.evidence(pixels)])

    def features(self, pixels: NDArray[np.uint8], doing: str = "images") -> NDArray[np.float64]:
        """Return the pooled input of the blocks that training unfroze, float64 [n, channels]."""
        return np.concatenate([batch["features"] for batch in self._run(pixels, doing)]).astype(np.float64)

    @property
    def has_pooled(self) -> bool:
        """Whether the graph has pooled features; those of older releases have none."""
        return "pooled" in self._outputs

    def pooled(self, pixels: NDArray[np.uint8], doing: str = "images") -> NDArray[np.float32]:
        """Return statistics of the pixels and the features of the network, float32 [n, 7 + d] (`explain.with_map`).

        Args:
            pixels: uint8 [n, size, size, 1 or 3].
            doing: What is computed, in words, for the progress bar.
        """
        return self._answers("pooled", pixels, doing)

    def _answers(self, output: str, pixels: NDArray[np.uint8], doing: str) -> NDArray[np.float32]:
        """Return an output for every image. Only new images are run."""
        keys = [hashlib.sha256(image.tobytes()).digest() for image in images.rgb(pixels)]
        new = {key: place for place, key in enumerate(keys) if key not in self._known}
        if new:
            batches = list(self._run(pixels[list(new.values())], doing))
            # those of frozen features are asked for once and take memory
            kept = {
                name: np.concatenate([batch[name] for batch in batches]) for name in batches[0] if name != "features"
            }
            self._known |= {key: {name: kept[name][row] for name in kept} for row, key in enumerate(new)}
        return np.stack([self._known[key][output] for key in keys])

    def _run(self, pixels: NDArray[np.uint8], doing: str) -> Iterator[dict[str, NDArray[np.float32]]]:
        """Yield the graph's outputs by name, one batch at a time."""
        with progress.bar(None, len(pixels), f"{self.name}, {doing}", "image") as bar:
            for start in range(0, len(pixels), self.batch_size):
                some = images.rgb(pixels[start : start + self.batch_size])
                # XLA compiles the graph for every new number of images, so the last batch is padded for it
                given = np.resize(some, (self.batch_size, *some.shape[1:])) if XLA else some
                answers = [output.numpy()[: len(some)] for output in self._call(tf.constant(given))]
                yield dict(zip(self._outputs, answers, strict=True))
                bar.update(len(some))


def frozen_graph(model: keras.Model, outputs: Sequence[str]) -> "tf.compat.v1.GraphDef":
    """Return the graph of a Keras model with its present weights as constants.

    Args:
        model: Model of uint8 [n, size, size, 3], which becomes "batch".
        outputs: Names for the model's outputs.
    """

    def run(batch: tf.Tensor) -> list[tf.Tensor]:
        given = model(batch, training=False)
        return [tf.identity(one, name) for one, name in zip(given, outputs, strict=True)]

    image = tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8, "batch")
    return _frozen(tf.function(run, [image]).get_concrete_function(), outputs)


def _frozen(function: Any, outputs: Sequence[str]) -> "tf.compat.v1.GraphDef":
    """Return the graph of a traced function with its variables turned into constants.

    TensorFlow's own `convert_variables_to_constants_v2` does the same, but takes thirty times as long, because it
    optimises the graph and builds a function from it.
    """
    values = {inner.op.name: outer for outer, inner in function.graph.captures}
    graph = function.graph.as_graph_def()
    for node in graph.node:
        if node.op == "ReadVariableOp":
            kind = tf.as_dtype(node.attr["dtype"].type)
            _become_constant(node, tf.raw_ops.ReadVariableOp(resource=values[node.input[0]], dtype=kind))
        elif node.name in values and values[node.name].dtype != tf.resource:
            _become_constant(node, values[node.name])
    wanted = [name for name in outputs if any(node.name == name for node in graph.node)]
    return tf.compat.v1.graph_util.extract_sub_graph(graph, wanted)


def _without_weights(graph: "tf.compat.v1.GraphDef") -> tuple["tf.compat.v1.GraphDef", dict[str, tf.Tensor]]:
    """Return the graph with placeholders for its large constants, and these constants by name.

    TensorFlow would copy constants ten times while it imports the graph.
    """
    bare, weights = tf.compat.v1.GraphDef(versions=graph.versions), {}
    for node in graph.node:
        if node.op == "Const" and node.ByteSize() > _LARGE:
            weights[node.name] = tf.constant(tf.make_ndarray(node.attr["value"].tensor))
            bare.node.add(name=node.name, op="Placeholder").attr["dtype"].CopyFrom(node.attr["dtype"])
        else:
            bare.node.append(node)
    return bare, weights


def _become_constant(node: Any, value: tf.Tensor) -> None:
    """Turn a node of a GraphDef into a constant of the same name, in place."""
    kind, tensor = value.dtype.as_datatype_enum, tf.make_tensor_proto(value.numpy())
    name = node.name
    node.Clear()
    node.name, node.op = name, "Const"
    node.attr["dtype"].type = kind
    node.attr["value"].tensor.CopyFrom(tensor)
