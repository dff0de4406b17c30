"""The deployment of the champion as a pipeline step."""

from kfp.dsl import HTML, Artifact, Input, Output

from components.step import step


@step(image="ops")
def deploy(
    summary: Input[Artifact],
    registry: str,
    namespace: str,
    canary: int,
    min_replicas: int,
    serving_gpu: bool,
    manifest: Output[Artifact],
    status: Output[HTML],
):
    """Serve the winner if the gate released it. If the gate refused it, the champion stays and the run succeeds."""
    from pathlib import Path

    from components.pages import text_page
    from thyroid.deploy import deploy as library
    from thyroid.deploy.options import DeployOptions
    from thyroid.records.evaluation import SummaryRecord

    version = SummaryRecord.read(Path(summary.path)).model.version
    options = DeployOptions(namespace=namespace, canary=canary, min_replicas=min_replicas, serving_gpu=serving_gpu)
    done = library.deploy(registry, version, Path(manifest.path), options)
    manifest.metadata |= {"status": done.status, "version": str(done.version), "url": done.url or ""}
    text_page(status.path, f"Deployment: {done.status}", [f"Version {done.version} {done.url or ''}", *done.notes])
