"""Run the pipeline's steps in their real images on this machine, with Podman or Docker in place of a cluster.

kfp.local's own DockerRunner talks to the engine's API service, and over Podman's it took 50 of 53 containers that exited with
3 for successes. The command line has no such race: its exit code is the container's.
"""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kfp import local
from kfp.local import docker_task_handler, status

from pipelines import cluster
from pipelines import local as steps
from thyroid.errors import InputError

LABEL = "thyroid.pipeline=local"
CREDENTIALS = "GOOGLE_APPLICATION_CREDENTIALS"
"""Names the key file for gs:// addresses; the containers get it from this environment."""
PATIENT_KEY = "THYROID_PATIENT_KEY"
"""The key of pseudonyms; containers of `cluster.KEYED` take it from this environment, and no command line holds it."""


def find_engine(wanted: str) -> str:
    """Path of the engine's command.

    Raises:
        InputError: it is not installed.
    """
    found = shutil.which(wanted)
    if found is None:
        raise InputError(
            f"--engine {wanted}: no such command; install it, or leave --engine out to run without containers"
        )
    return found


def runner(engine: str, images: Iterable[str], read: Iterable[Path], write: Iterable[Path]) -> Any:
    """A kfp.local.DockerRunner whose containers see these folders under their own paths.

    Args:
        engine: podman or docker.
        images: that the steps need.
        read: files and folders to mount read-only.
        write: folders to mount for writing, made if need be.

    Raises:
        InputError: the engine or an image is not here.
    """
    command = find_engine(engine)
    for image in images:
        asked = subprocess.run([command, "image", "inspect", image], capture_output=True, check=False)
        if asked.returncode:
            raise InputError(f"image {image} is not here: build it with make images")
    key = os.environ.get(CREDENTIALS)
    mounts = [f"{path}:{path}:ro" for path in {p.resolve() for p in (*read, *([Path(key)] if key else []))}]
    for path in {p.resolve() for p in write}:
        path.mkdir(parents=True, exist_ok=True)
        mounts.append(f"{path}:{path}:rw")

    def run(self: Any) -> status.Status:
        """What the pod would do: the command in place of any ENTRYPOINT, as this user."""
        container = f"thyroid-{uuid.uuid4().hex}"
        line = [command, "run", "--rm", "--pull=never", "--label", LABEL, "--name", container]
        line += ["--user", f"{os.getuid()}:{os.getgid()}"]
        if engine == "podman" and os.getuid():
            line += ["--userns", "keep-id"]
        Path(self.pipeline_root).mkdir(parents=True, exist_ok=True)
        for mount in dict.fromkeys(
            [*(f"{h}:{v['bind']}:{v['mode']}" for h, v in self.get_volumes_to_mount().items()), *mounts]
        ):
            line += ["-v", mount]
        if key:
            line += ["-e", f"{CREDENTIALS}={Path(key).resolve()}"]
        if PATIENT_KEY in os.environ and not set(cluster.KEYED).isdisjoint(self.full_command):
            line += ["-e", PATIENT_KEY]
        for name, value in self.env_vars.items():
            line += ["-e", f"{name}={value}"]
        line += ["--entrypoint", self.full_command[0], self.image, *self.full_command[1:]]
        return steps.run(line, {}, (command, container))

    docker_task_handler.DockerTaskHandler.run = run
    return local.DockerRunner()
