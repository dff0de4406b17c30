"""What earlier releases left behind, made of what this one writes."""

import shutil
from pathlib import Path

from thyroid.model import artefact, network
from thyroid.model.backend import tf
from thyroid.train import record


def training(folder: Path, copy: Path) -> Path:
    """A copy of a finished training whose graph has no pooled features."""
    shutil.copytree(folder, copy)
    graph = tf.compat.v1.GraphDef.FromString((copy / network.GRAPH).read_bytes())
    present = {node.name for node in graph.node}
    kept = [name for name in network.OUTPUTS if name in present and name != "pooled"]
    bare = tf.compat.v1.graph_util.extract_sub_graph(graph, kept)
    (copy / network.GRAPH).write_bytes(bare.SerializeToString())
    facts = record.read(copy)
    files = facts.files | {network.GRAPH: artefact.sha256(copy / network.GRAPH)}
    facts.model_copy(update={"files": files}).write(copy / record.TRAINING)
    return copy
