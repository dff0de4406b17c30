"""Every pod that the project describes is allowed where pods must be `restricted`, and the table of that can fail."""

import copy

import pytest
import yaml

from pipelines import __main__ as cli
from tests.support import ROOT, pod_security
from tests.support.kubernetes import kustomized

FOLDERS = sorted(
    file.parent.relative_to(ROOT).as_posix()
    for folder in ("overlays", "service")
    for file in (ROOT / "manifests" / folder).glob("*/kustomization.yaml")
)
OURS = "spec.containers[0]"

ALLOWED = {
    "spec": {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "one",
                "image": "x",
                "ports": [{"containerPort": 80}],
                "livenessProbe": {"httpGet": {"path": "/", "port": 80}},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
                },
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
}
CONTEXT = "spec.containers.0.securityContext"
BROKEN = [
    ("HostProcess", "spec.securityContext.windowsOptions", {"hostProcess": True}),
    ("HostProcess", f"{CONTEXT}.windowsOptions", {"hostProcess": True}),
    ("Host Namespaces", "spec.hostNetwork", True),
    ("Host Namespaces", "spec.hostPID", True),
    ("Host Namespaces", "spec.hostIPC", True),
    ("Privileged Containers", f"{CONTEXT}.privileged", True),
    ("Host Ports", "spec.containers.0.ports.0.hostPort", 80),
    ("Host Probes / Lifecycle Hooks", "spec.containers.0.livenessProbe.httpGet.host", "other.example.com"),
    ("Host Probes / Lifecycle Hooks", "spec.containers.0.readinessProbe", {"tcpSocket": {"port": 80, "host": "other"}}),
    ("Host Probes / Lifecycle Hooks", "spec.containers.0.lifecycle", {"preStop": {"httpGet": {"host": "other"}}}),
    ("AppArmor", "spec.securityContext.appArmorProfile", {"type": "Unconfined"}),
    ("AppArmor", f"{CONTEXT}.appArmorProfile", {"type": "Unconfined"}),
    ("SELinux", f"{CONTEXT}.seLinuxOptions", {"type": "spc_t"}),
    ("SELinux", "spec.securityContext.seLinuxOptions", {"user": "system_u"}),
    ("SELinux", "spec.securityContext.seLinuxOptions", {"role": "system_r"}),
    ("/proc Mount Type", f"{CONTEXT}.procMount", "Unmasked"),
    ("Sysctls", "spec.securityContext.sysctls", [{"name": "kernel.msgmax", "value": "1"}]),
    ("Volume Types", "spec.volumes.0", {"name": "tmp", "hostPath": {"path": "/"}}),
    ("Volume Types", "spec.volumes.0", {"name": "tmp", "nfs": {"server": "x", "path": "/"}}),
    ("Privilege Escalation", f"{CONTEXT}.allowPrivilegeEscalation", True),
    ("Privilege Escalation", f"{CONTEXT}.allowPrivilegeEscalation", None),
    ("Running as Non-root", f"{CONTEXT}.runAsNonRoot", False),
    ("Running as Non-root", "spec.securityContext.runAsNonRoot", None),
    ("Running as Non-root user", f"{CONTEXT}.runAsUser", 0),
    ("Running as Non-root user", "spec.securityContext.runAsUser", 0),
    ("Seccomp", "spec.securityContext.seccompProfile", None),
    ("Seccomp", "spec.securityContext.seccompProfile", {"type": "Unconfined"}),
    ("Seccomp", f"{CONTEXT}.seccompProfile", {"type": "Unconfined"}),
    ("Capabilities", f"{CONTEXT}.capabilities", None),
    ("Capabilities", f"{CONTEXT}.capabilities.drop", ["NET_RAW"]),
    ("Capabilities", f"{CONTEXT}.capabilities.add", ["SYS_ADMIN"]),
]


def broken(path: str, value: object) -> dict:
    pod = copy.deepcopy(ALLOWED)
    *before, last = [int(name) if name.isdigit() else name for name in path.split(".")]
    place = pod
    for name in before:
        place = place[name]
    place[last] = value
    return pod


def test_the_table_allows_a_pod_that_is_restricted():
    assert pod_security.violations(ALLOWED) == []
    own = broken(f"{CONTEXT}.runAsNonRoot", True)
    del own["spec"]["securityContext"]["runAsNonRoot"]
    assert pod_security.violations(own) == [], "a container may say for itself what the pod does not"


@pytest.mark.parametrize(("control", "path", "value"), BROKEN)
def test_the_table_refuses_a_pod_that_breaks_a_row(control, path, value):
    found = pod_security.violations(broken(path, value))
    assert found
    assert {one.split(":")[0] for one in found} == {control}


@pytest.mark.parametrize("kind", ["initContainers", "ephemeralContainers"])
def test_the_table_knows_every_kind_of_container(kind):
    pod = copy.deepcopy(ALLOWED)
    pod["spec"][kind] = [{"name": "other", "image": "x"}]
    found = pod_security.violations(pod)
    assert {one.split(":")[0] for one in found} == {"Privilege Escalation", "Capabilities"}
    assert all(f"spec.{kind}[0]" in one for one in found)


def test_each_row_of_the_table_is_broken_once():
    assert {row.control for row in pod_security.ROWS} == {control for control, *_ in BROKEN}


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_manifests_pods_are_restricted(folder):
    pods = pod_security.pods(kustomized(folder))
    if folder.startswith("manifests/overlays"):
        assert {"Deployment thyroid-web", "ServingRuntime thyroid"} <= pods.keys()
    assert {name: found for name, pod in pods.items() if (found := pod_security.violations(pod))} == {}


def test_the_workbench_is_restricted():
    (pod,) = pod_security.pods(yaml.safe_load_all((ROOT / "manifests" / "workbench" / "pod.yaml").read_text())).values()
    assert pod_security.violations(pod) == []


@pytest.fixture(scope="module")
def steps(tmp_path_factory) -> dict[str, dict]:
    """The pods of all compiled pipelines, with every option that adds something to a pod."""
    folder = tmp_path_factory.mktemp("compiled")
    options = [
        "--gcs-secret",
        "key",
        "--s3-secret",
        "lab-s3",
        "--node-selector",
        "cloud.google.com/gke-accelerator=nvidia-l4",
    ]
    assert cli.main(["compile", "--output", str(folder / "thyroid.yaml"), *options]) == 0
    files = [file for file in sorted(folder.glob("*.yaml")) if not file.stem.endswith("-version")]
    assert len(files) == 4
    pods = [pod for file in files for pod in pod_security.steps(file, "thyroid-pipeline").values()]
    return {pod["metadata"]["name"]: pod for pod in pods}


def test_the_steps_pods_are_restricted(steps):
    assert {name: found for name, pod in steps.items() if (found := pod_security.violations(pod))} == {}
    assert len(steps) > 20
    for pod in steps.values():
        (container,) = pod["spec"]["containers"]
        assert container["securityContext"]["runAsUser"] == 10001
        assert {volume["name"] for volume in pod["spec"]["volumes"]} >= {"thyroid-data", "key"}


def test_only_what_kubeflow_sets_itself_is_missing_from_the_steps_own_settings(steps):
    """kfp-kubernetes has no function for these fields."""
    for given in steps.values():
        pod = copy.deepcopy(given)
        del pod["spec"]["securityContext"]
        for name in pod_security.HARDENED:
            del pod["spec"]["containers"][0]["securityContext"][name]
        found = {one.split(":")[0] for one in pod_security.violations(pod) if OURS in one}
        assert found == {"Privilege Escalation", "Capabilities", "Seccomp"}
