"""The pod that makes the volume writable for the steps, applied again by a later commit, which has other images."""

import re

import pytest

from tests.support.kubernetes import OVERLAY

pytestmark = pytest.mark.cluster

NAME = "thyroid-volume"


@pytest.mark.parametrize("way", ["--server-side=true", "--server-side=false"])
def test_the_manifests_are_applied_again_with_the_images_of_a_later_commit(server, namespace, way):
    if way == "--server-side=false":
        namespace.kubectl("delete", "pod", NAME, "--wait=false", "--grace-period=0", "--force")
    text = server.kubectl("kustomize", str(OVERLAY))
    for tag in ("dev", "0123456789ab", "0123456789ab"):
        tagged = re.sub(r"(image: localhost/thyroid-[a-z]+):dev$", rf"\1:{tag}", text, flags=re.MULTILINE)
        said = namespace.kubectl("apply", way, "--filename=-", text=tagged)
        assert f"pod/{NAME} " in said
        (container,) = namespace.objects("pod", NAME)["spec"]["containers"]
        assert container["image"] == f"localhost/thyroid-ops:{tag}"
