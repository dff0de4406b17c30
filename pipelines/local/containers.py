"""Run the pipeline's steps in their real images on this machine, with Podman or Docker instead of a cluster.

kfp.local's own DockerRunner talks to the engine's API service. With Podman's service it reported success for 50 of 53
containers that had exited with code 3. The command line has no such race: its exit code is the container's.
"""

import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kfp import local
from kfp.local import docker_task_handler, status

from components.conclude import FAILED_STEP
from pipelines import cluster
from pipelines.local import steps
from thyroid.errors import InputError
from thyroid.notify.receivers import RUN, VARIABLES

LABEL = "thyroid.pipeline=local"
CREDENTIALS = "GOOGLE_APPLICATION_CREDENTIALS"
"""Variable with the path of the key file for gs:// addresses. Containers inherit it from this environment."""
BUCKETS = re.compile(r"AWS_\w+|STORAGE_EMULATOR_HOST")
"""Variables with credentials and endpoints of buckets.

Containers inherit them from this environment. Their values never appear on a command line.
"""
PATIENT_KEY = "THYROID_PATIENT_KEY"
"""Variable with the key of the pseudonyms.

Containers of the steps in `cluster.KEYED` inherit it from this environment. The key never appears on a command line.
"""


def find_engine(wanted: str) -> str:
    """Return the path of the engine's command.

    Args:
        wanted: Name of the command: podman or docker.

    Raises:
        InputError: The engine is not installed.
    """
    found = shutil.which(wanted)
    if found is None:
        raise InputError(
            f"--engine {wanted}: no such command; install it, or leave --engine out to run without containers"
        )
    return found


def runner(
    engine: str, images: Iterable[str], read: Iterable[Path], write: Iterable[Path], cache: Path | None = None
) -> Any:
    """Return a kfp.local.DockerRunner whose containers see the given folders under the same paths as the host.

    Args:
        engine: Container engine: podman or docker.
        images: Images that the steps need.
        read: Files and folders to mount read-only.
        write: Folders to mount for writing. Missing ones are created.
        cache: Folder for what the steps download from buckets, so that each object is downloaded once for all of them;
            None if they read no bucket.

    Raises:
        InputError: The engine is not installed, or an image has not been built.
    """
    command = find_engine(engine)
    for image in images:
        asked = subprocess.run([command, "image", "inspect", image], capture_output=True, check=False)
        if asked.returncode:
            raise InputError(f"image {image} not found; build it with make images")
    key = os.environ.get(CREDENTIALS)
    mounts = [f"{path}:{path}:ro" for path in {p.resolve() for p in (*read, *([Path(key)] if key else []))}]
    for path in {p.resolve() for p in (*write, *([cache] if cache else []))}:
        path.mkdir(parents=True, exist_ok=True)
        mounts.append(f"{path}:{path}:rw")

    def run(self: Any) -> status.Status:
        """Run the step as a pod would: as this user, with the command overriding any ENTRYPOINT."""
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
        for name in filter(BUCKETS.fullmatch, os.environ):
            line += ["-e", name]
        if cache:
            # only this folder of it can be written, so Matplotlib's cache goes elsewhere
            line += ["-e", f"XDG_CACHE_HOME={cache.resolve().parent}", "-e", "MPLCONFIGDIR=/tmp"]
        if PATIENT_KEY in os.environ and not set(cluster.KEYED).isdisjoint(self.full_command):
            line += ["-e", PATIENT_KEY]
        line += ["-e", FAILED_STEP, "-e", RUN]
        if not set(cluster.NOTIFYING).isdisjoint(self.full_command):
            for name in VARIABLES.values() & os.environ.keys():
                line += ["-e", name]
        for name, value in self.env_vars.items():
            line += ["-e", f"{name}={value}"]
        line += ["--entrypoint", self.full_command[0], self.image, *self.full_command[1:]]
        return steps.run(line, {}, (command, container))

    docker_task_handler.DockerTaskHandler.run = run
    return local.DockerRunner()
