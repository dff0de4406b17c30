"""The host, the compiled pipeline, and listeners that are ended with their test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines import compile
from tests.support.kubeflow import Kubeflow
from tests.support.listening import Listener


@pytest.fixture
def host() -> Iterator[Kubeflow]:
    running = Kubeflow()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture(scope="package")
def package(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("package") / "thyroid.yaml"
    compile.compile_training(compile.Placement(backbones="VGG16", claim=""), output)
    return output


@pytest.fixture
def listen(tmp_path, host, package) -> Iterator[Callable[..., Listener]]:
    """Start a listener for the scans of a place: quiet for a second, or as many scans as are given."""
    started: list[Listener] = []

    def start(root: str, *arguments: str, state: str = "", quiet: str = "0.02", **options) -> Listener:
        given = (f"scans={root}/scans", f"registry={root}/registry", f"store={root}/store", f"rois={root}/rois.csv")
        sets = [part for one in given for part in ("--set", one)]
        auth = [] if "--no-auth" in arguments else ["--event-token-file", str(tmp_path / "token")]
        line = ["--host", host.url, "--state", state or f"{root}/listen", "--quiet", quiet, *sets, *auth, *arguments]
        started.append(Listener(tmp_path, package, "--claim", "", *line, **options))
        return started[-1].wait()

    yield start
    for one in started:
        one.kill()
