"""Shards of a step: pods that do its work side by side before it, so that the step itself only gathers the results."""

from collections.abc import Callable
from typing import Any

from kfp import dsl

from pipelines.cluster import Cluster, place


def put_before(
    gathering: Any, shard: Callable[..., Any], step: str, shards: int, cluster: Cluster | None, **inputs: Any
) -> None:
    """Let the shards of a step run before it.

    A shard that fails is tried again and goes on from what it has left in the store. One that fails every time ends
    the run, and the next run goes on from there. The step cannot run in spite of it: KFP's API server makes a
    task with `ignore_upstream_failure` an exit hook, which no other task can follow.

    Args:
        gathering: Task of the step.
        shard: Component of a shard, with the inputs shard and shards beside `inputs`.
        step: Name of the step in `pipelines.cluster.NEEDS`; a shard needs the same.
        shards: Number of shards; 1 for none beside the step itself.
        cluster: Cluster to run on; None for this machine.
        **inputs: Inputs of the component. In a loop, kfp.local (2.17) replaces parameters that come from other steps
            with the number of the shard, so only artifacts may come from them.
    """
    if shards == 1:
        return
    with dsl.ParallelFor([*range(1, shards + 1)], name=f"shards of {step}") as number:
        task = place(shard(**inputs, shard=number, shards=shards), step, cluster)
        task.set_caching_options(False)  # the store knows what has been done
    gathering.after(task)
