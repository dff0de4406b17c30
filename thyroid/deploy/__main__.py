"""Command of the deployment step, see `deploy.deploy`.

python -m thyroid.deploy --registry /data/registry --namespace thyroid
python -m thyroid.deploy --registry output/registry --manifest service.yaml    (without a cluster)
"""

from pathlib import Path
from typing import Annotated

from thyroid import command
from thyroid.command import FLAT
from thyroid.deploy.deploy import deploy
from thyroid.deploy.options import DeployOptions
from thyroid.storage import Location


def run(
    *,
    registry: Location,
    manifest: Path = Path("inferenceservice.yaml"),
    options: Annotated[DeployOptions, FLAT] = DeployOptions(),
) -> None:
    """Serve the champion with KServe, prove its answer, or restore what was there before.

    Args:
        registry: Root of the registry: a folder, or a gs:// or s3:// prefix.
        manifest: File to which the InferenceService is written.
        options: Where and how to serve.
    """
    deploy(registry, None, manifest, options)


main = command.main("python -m thyroid.deploy", run)

if __name__ == "__main__":
    raise SystemExit(main())
