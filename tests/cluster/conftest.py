"""The API server of all of these tests, and a namespace for each of them."""

import os
from collections.abc import Iterator

import pytest

from tests.support.kubernetes import CRDS, ApiServer, Namespace, require_kubectl


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """The cluster of KUBECONFIG, or etcd and kube-apiserver."""
    require_kubectl()
    if not CRDS.is_dir():
        pytest.skip(f"the custom resources of KServe and Kubeflow are not here ({CRDS})")
    folder, kubeconfig = tmp_path_factory.mktemp("cluster"), os.environ.get("KUBECONFIG")
    one = ApiServer.join(folder, kubeconfig) if kubeconfig else ApiServer.start(folder)
    yield one
    one.stop()


@pytest.fixture(scope="session")
def own_server(server: ApiServer) -> ApiServer:
    """A server that may be restarted."""
    if not server.ours:
        pytest.skip("the cluster of KUBECONFIG is not restarted")
    return server


@pytest.fixture(scope="session")
def no_kserve(server: ApiServer) -> None:
    """Skip where KServe's own controller would act on the InferenceServices of the test, too."""
    if server.has_kserve():
        pytest.skip("KServe's own controller runs in the cluster of KUBECONFIG")


@pytest.fixture
def namespace(server: ApiServer) -> Iterator[Namespace]:
    one = Namespace(server)
    yield one
    one.remove()
