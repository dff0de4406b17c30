"""The API server itself: rights of real tokens, restarts, quotas, a cluster that was there before, and the build."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.kubernetes import INSTALL, ApiServer, Namespace, kubectl

pytestmark = pytest.mark.cluster
SERVICE = """
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: thyroid}
spec: {predictor: {model: {modelFormat: {name: thyroid}, storageUri: pvc://thyroid-data/registry/models/1}}}
"""


def test_a_token_has_the_rights_of_its_account_in_its_namespace_alone(server, namespace):
    namespace.apply(SERVICE)
    account = namespace.account("thyroid-pipeline")
    found = json.loads(kubectl(account, "get", "inferenceservice", "thyroid", "--output=json"))
    assert found["metadata"]["uid"] == namespace.objects("inferenceservice", "thyroid")["metadata"]["uid"]
    for refused in (("--namespace=default", "inferenceservice", "thyroid"), ("inferenceservices",), ("secrets",)):
        with pytest.raises(RuntimeError, match=f"{namespace.name}:thyroid-pipeline.* cannot (get|list) resource"):
            kubectl(account, "get", *refused)
    with pytest.raises(RuntimeError, match="cannot get resource"):
        kubectl(namespace.account("thyroid-web"), "get", "inferenceservice", "thyroid")


def test_a_restart_loses_nothing(own_server, namespace):
    namespace.apply(SERVICE)
    account = namespace.account("thyroid-pipeline")
    before = namespace.objects("inferenceservices")
    own_server.restart()
    own_server.wait()
    assert namespace.objects("inferenceservices") == before
    assert kubectl(account, "get", "inferenceservice", "thyroid", "--output=name").endswith("/thyroid\n")


def test_a_quota_refuses_what_goes_beyond_it(namespace):
    namespace.limit({"count/inferenceservices.serving.kserve.io": "0"})
    with pytest.raises(RuntimeError, match="exceeded quota"):
        namespace.apply(SERVICE)
    assert namespace.objects("inferenceservices") == []


def test_a_cluster_that_was_there_before_is_left_as_it_was(own_server, tmp_path):
    lacking = "scheduledworkflows.kubeflow.org"
    own_server.kubectl("delete", "crd", lacking)
    before = {one["metadata"]["name"] for one in own_server.objects("crd")}
    assert lacking not in before
    joined = ApiServer.join(tmp_path, str(own_server.kubeconfig))
    assert {one["metadata"]["name"] for one in joined.objects("crd")} == {*before, lacking}
    namespace = Namespace(joined)
    namespace.apply(SERVICE)
    namespace.kubectl("patch", "isvc", "thyroid", "--type=merge", '--patch={"metadata": {"finalizers": ["a.test/b"]}}')
    namespace.remove()
    joined.stop()
    assert {one["metadata"]["name"] for one in own_server.objects("crd")} == before
    left = {one["metadata"]["name"]: one["status"]["phase"] for one in own_server.objects("namespaces")}
    assert left.get(namespace.name) in (None, "Terminating")  # only a controller ends it
    assert namespace.objects("inferenceservice", "thyroid")["metadata"].get("finalizers") is None
    own_server.add_custom_resources()


def install(folder: Path, **commands: str) -> subprocess.CompletedProcess:
    """install.sh with a cache in a folder, and with scripts in place of some commands."""
    for name, script in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    places = {"XDG_CACHE_HOME": str(folder / "cache"), "PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run([INSTALL], env=os.environ | places, capture_output=True, text=True)


def test_what_is_built_is_not_built_again(tmp_path):
    failing = dict.fromkeys(("df", "apt-get", "mktemp"), "exit 1")
    place = Path(install(tmp_path, **failing).stdout.strip())
    assert place.is_relative_to(tmp_path / "cache" / "thyroid")
    place.mkdir(parents=True)
    done = install(tmp_path, **failing)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{place}\n", "")


@pytest.mark.skipif("VERSION_CODENAME=bookworm" not in Path("/etc/os-release").read_text(), reason="not Debian 12")
@pytest.mark.parametrize(
    ("command", "script", "said"),
    [
        ("df", "printf 'Avail\\n 2499M\\n'", "building kube-apiserver needs 2.5 GB of free disk"),
        (
            "apt-get",
            "echo 'E: no network'; exit 100",
            "E: no network\nerror: Debian's packages and their sources cannot",
        ),
    ],
)
def test_a_build_that_cannot_be_says_why_and_leaves_nothing(tmp_path, command, script, said):
    done = install(tmp_path, **{command: script})
    assert done.returncode == 2
    assert said in done.stderr
    assert "KUBECONFIG=file make test-cluster" in done.stderr
    place = Path(done.stdout.strip())
    assert [one.name for one in place.parent.iterdir()] == [f"{place.name}.lock"]
