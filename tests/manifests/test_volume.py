"""The pod that makes the volume writable for the steps: its account, its volume, and its command in a real shell."""

import subprocess
from pathlib import Path

import pytest
import yaml

from pipelines import cluster
from tests.support import ROOT
from thyroid.storage import volume as place


@pytest.fixture(scope="module")
def spec() -> dict:
    claim, pod, _ = yaml.safe_load_all((ROOT / "manifests" / "base" / "volume.yaml").read_text())
    assert claim["metadata"]["name"] == place.CLAIM
    return pod["spec"]


def run(spec: dict, volume: Path) -> subprocess.CompletedProcess:
    """Run the command with a folder in the volume's place."""
    (container,) = spec["containers"]
    assert [one["mountPath"] for one in container["volumeMounts"]] == [place.MOUNT]
    script = container["args"][0].replace(f"{place.MOUNT}/", f"{volume}/").replace(f"-p {place.MOUNT}", f"-p {volume}")
    return subprocess.run([*container["command"], script], capture_output=True, text=True)


def test_it_is_the_steps_user_and_its_group_gets_their_volume(spec):
    given = spec["securityContext"]
    assert {given["runAsUser"], given["runAsGroup"], given["fsGroup"]} == {cluster.USER}
    assert [one["persistentVolumeClaim"]["claimName"] for one in spec["volumes"]] == [cluster.Cluster().claim]


def test_it_leaves_the_folder_of_the_decision_log_and_nothing_else(spec, tmp_path):
    for _ in range(2):  # as it is after the first time
        done = run(spec, tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert [path.name for path in tmp_path.iterdir()] == ["decisions"]
    component = (ROOT / "manifests" / "components" / "decision-log" / "kustomization.yaml").read_text()
    assert "subPath: decisions" in component


def test_a_volume_that_cannot_be_written_is_told(spec, tmp_path):
    (tmp_path / "decisions").write_text("no folder")
    done = run(spec, tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: user 10001 cannot write to the volume thyroid-data")
