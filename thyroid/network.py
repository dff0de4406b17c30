"""A trained model as one graph that is traced once, whatever asks it.

Tracing a deep backbone takes longer than a few hundred small images take to run, and Keras traces one anew for every model
that is derived from it, every method and every number of images. So probabilities, evidence by place and frozen features are
three outputs of one graph, from which OpenVINO's form is written, too; and an image that was asked about before is not run
again.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thyroid import classes as kinds
from thyroid import explain, images, inputs, progress, registry
from thyroid.backend import XLA, keras, tf
from thyroid.classes import BINARY, Classes

BATCH = 32


class Network:
    """A model of `backbones.build`, to be asked.

    Args:
        model: the model.
        classes: that it tells apart.
        unfrozen: blocks that training did not leave alone, in front of which `features` are taken; None where training left
            nothing alone.
    """

    def __init__(self, model: keras.Model, classes: Classes = BINARY, unfrozen: int | None = None) -> None:
        self.model = model
        whole = explain.with_map(model, classes, unfrozen)
        image = tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8)
        self._call = tf.function(lambda batch: whole(batch, training=False), [image], jit_compile=XLA)
        self._known: dict[bytes, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}

    @classmethod
    def load(cls, folder: Path, facts: dict[str, Any]) -> "Network":
        """The network of a finished training.

        Args:
            folder: of the training.
            facts: its facts (train.json).

        Raises:
            InputError: the checkpoint is missing or damaged.
        """
        unfrozen = None if facts["recipe"] == "deck" else max(1, facts.get("settings", {}).get("unfrozen", 1))
        return cls(registry.load_keras(folder / facts["checkpoint"]), kinds.of(facts), unfrozen)

    def probabilities(self, pixels: NDArray[np.uint8], doing: str = "images") -> NDArray[np.float64]:
        """Probabilities [n, classes] of uint8 [n, size, size, 1 or 3], not scaled.

        Args:
            pixels: the images.
            doing: what for, in words, on the progress bar.

        Raises:
            InputError: they are not finite.
        """
        answers = [answer[0] for answer in self._answers(pixels, doing)]
        return inputs.finite(self.model.name, np.stack(answers).astype(np.float64))

    def evidence(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Evidence of malignancy by place [n, h, w], as of `explain.with_map`."""
        return np.stack([answer[1] for answer in self._answers(pixels, "heat maps")])

    def features(self, pixels: NDArray[np.uint8], doing: str = "images") -> NDArray[np.float64]:
        """What enters the blocks that training unfroze, pooled [n, channels]."""
        batches = [features for _, _, features in self._run(pixels, doing)]
        return np.concatenate(batches).astype(np.float64)

    def frozen(self) -> bytes:
        """Probabilities and evidence as a TensorFlow graph whose variables have become constants (a serialised GraphDef).

        TensorFlow's own `convert_variables_to_constants_v2` does the same in thirty times the time, since it optimises the
        graph and builds a function of it.
        """
        function = self._call.get_concrete_function()
        values = {inner.op.name: outer for outer, inner in function.graph.captures}
        graph = function.graph.as_graph_def()
        for node in graph.node:
            if node.op == "ReadVariableOp":
                kind = tf.as_dtype(node.attr["dtype"].type)
                _become_constant(node, tf.raw_ops.ReadVariableOp(resource=values[node.input[0]], dtype=kind))
            elif node.name in values and values[node.name].dtype != tf.resource:
                _become_constant(node, values[node.name])
        wanted = [output.op.name for output in function.outputs[:2]]
        return tf.compat.v1.graph_util.extract_sub_graph(graph, wanted).SerializeToString()

    def _answers(self, pixels: NDArray[np.uint8], doing: str) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Probabilities and evidence of every image, of which only new ones are run."""
        keys = [hashlib.sha256(image.tobytes()).digest() for image in images.rgb(pixels)]
        new = {key: place for place, key in enumerate(keys) if key not in self._known}
        if new:
            batches = [answers[:2] for answers in self._run(pixels[list(new.values())], doing)]
            probability, evidence = (np.concatenate(part) for part in zip(*batches, strict=True))
            self._known |= dict(zip(new, zip(probability, evidence, strict=True), strict=True))
        return [self._known[key] for key in keys]

    def _run(self, pixels: NDArray[np.uint8], doing: str) -> Iterator[list[NDArray[np.float32]]]:
        """The graph's outputs, a batch at a time."""
        with progress.bar(None, len(pixels), f"{self.model.name}, {doing}", "image") as bar:
            for start in range(0, len(pixels), BATCH):
                some = images.rgb(pixels[start : start + BATCH])
                # XLA compiles the graph for every new number of images: there the last batch is filled up
                given = np.resize(some, (BATCH, *some.shape[1:])) if XLA else some
                yield [output.numpy()[: len(some)] for output in self._call(tf.constant(given))]
                bar.update(len(some))


def _become_constant(node: Any, value: tf.Tensor) -> None:
    """Turn a node of a GraphDef, in place, into a constant of the same name."""
    kind, tensor = value.dtype.as_datatype_enum, tf.make_tensor_proto(value.numpy())
    name = node.name
    node.Clear()
    node.name, node.op = name, "Const"
    node.attr["dtype"].type = kind
    node.attr["value"].tensor.CopyFrom(tensor)
