"""What Kubernetes asks of a pod at the level `restricted`, as a table, and the pods of the project to hold against it.

The table has the fields of https://kubernetes.io/docs/concepts/security/pod-security-standards/ with the values that
every version since 1.25 allows. It is for pods of Linux without user namespaces, of which later versions ask less. Not
in the table are annotations, which older versions read in place of fields, and the containers that others add to a pod.
An API server from 1.25 on checks the same in a namespace with the label pod-security.kubernetes.io/enforce=restricted.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

ENFORCE = "pod-security.kubernetes.io/enforce"
"""Label of a namespace for the level that its pods must have."""
CONTAINERS = ("containers", "initContainers", "ephemeralContainers")
VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
SELINUX = ("container_t", "container_init_t", "container_kvm_t")
SYSCTLS = (
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
)  # fmt: skip
HANDLERS = [
    f"{hook}.{way}"
    for hook in ("livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop")
    for way in ("httpGet", "tcpSocket")
]


@dataclass(frozen=True)
class Row:
    """One control of the standards.

    Attributes:
        control: Its name there.
        fields: Paths in the pod, as the standards write them. Those of containers stand for all kinds of containers.
        allowed: Tells whether a value is allowed; a missing field is None.
        inherited: Whether a container without the field has the pod's.
    """

    control: str
    fields: Sequence[str]
    allowed: Callable[[Any], bool]
    inherited: bool = False


def _one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: value in values


def _context(*names: str) -> list[str]:
    return [f"spec.{where}securityContext.{name}" for name in names for where in ("", "containers[*].")]


ROWS = (
    Row("HostProcess", _context("windowsOptions.hostProcess"), _one_of(None, False)),
    Row("Host Namespaces", ["spec.hostNetwork", "spec.hostPID", "spec.hostIPC"], _one_of(None, False)),
    Row("Privileged Containers", ["spec.containers[*].securityContext.privileged"], _one_of(None, False)),
    Row("Host Ports", ["spec.containers[*].ports[*].hostPort"], _one_of(None, 0)),
    Row("Host Probes / Lifecycle Hooks", [f"spec.containers[*].{one}.host" for one in HANDLERS], _one_of(None, "")),
    Row("AppArmor", _context("appArmorProfile.type"), _one_of(None, "RuntimeDefault", "Localhost")),
    Row("SELinux", _context("seLinuxOptions.type"), _one_of(None, "", *SELINUX)),
    Row("SELinux", _context("seLinuxOptions.user", "seLinuxOptions.role"), _one_of(None, "")),
    Row("/proc Mount Type", ["spec.containers[*].securityContext.procMount"], _one_of(None, "Default")),
    Row("Sysctls", ["spec.securityContext.sysctls[*].name"], _one_of(*SYSCTLS)),
    Row("Volume Types", ["spec.volumes[*]"], lambda volume: volume.keys() - {"name"} <= VOLUMES),
    Row("Privilege Escalation", ["spec.containers[*].securityContext.allowPrivilegeEscalation"], _one_of(False)),
    Row("Running as Non-root", ["spec.containers[*].securityContext.runAsNonRoot"], _one_of(True), inherited=True),
    Row("Running as Non-root user", _context("runAsUser"), lambda user: user != 0),
    Row("Seccomp", ["spec.securityContext.seccompProfile.type"], _one_of(None, "RuntimeDefault", "Localhost")),
    Row(
        "Seccomp",
        ["spec.containers[*].securityContext.seccompProfile.type"],
        _one_of("RuntimeDefault", "Localhost"),
        inherited=True,
    ),
    Row("Capabilities", ["spec.containers[*].securityContext.capabilities.drop"], lambda names: "ALL" in (names or [])),
    Row(
        "Capabilities",
        ["spec.containers[*].securityContext.capabilities.add"],
        lambda names: {*(names or [])} <= {"NET_BIND_SERVICE"},
    ),
)  # fmt: skip


def violations(pod: Mapping[str, Any]) -> list[str]:
    """Return what `restricted` does not allow of a pod, each as the control, the field and its value.

    Args:
        pod: The pod, or a template of one: an object with `spec`.
    """
    found = []
    for row in ROWS:
        for field in row.fields:
            default = None
            if row.inherited:
                ((_, default),) = _values(pod, field.replace("containers[*].", ""))
            for kind in CONTAINERS if "containers[*]" in field else [""]:
                for where, own in _values(pod, field.replace("containers[*]", f"{kind}[*]")):
                    value = default if own is None else own
                    if not row.allowed(value):
                        found.append(f"{row.control}: {where} is {value}")
    return found


def _values(node: Any, path: str, before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each place that a path leads to, with its value; none for a list that is empty or missing."""
    name, _, rest = path.partition(".")
    key = name.removesuffix("[*]")
    child = (node or {}).get(key)
    found = [(f"{before}{key}", child)]
    if name.endswith("[*]"):
        found = [(f"{before}{key}[{number}]", one) for number, one in enumerate(child or [])]
    for where, value in found:
        if rest:
            yield from _values(value, rest, f"{where}.")
        else:
            yield where, value


def pods(objects: Iterable[Object]) -> dict[str, Object]:
    """Return the pods that are made of objects, by kind and name.

    KServe makes a pod of a ServingRuntime's containers and volumes. Its own containers beside them are not here. Argo
    Events makes one of what the template of an EventSource or a Sensor says about its container.
    """
    found = {}
    for one in objects:
        if one["kind"] == "Pod":
            pod = one
        elif one["kind"] == "ServingRuntime":
            pod = {"spec": {name: one["spec"][name] for name in ("containers", "volumes")}}
        elif one["kind"] in ("EventSource", "Sensor"):
            template = one["spec"]["template"]
            containers = [{"name": "main", **template["container"]}]
            pod = {"spec": {"securityContext": template["securityContext"], "containers": containers}}
        elif "template" in one.get("spec", {}):
            pod = one["spec"]["template"]
        else:
            continue
        found[f"{one['kind']} {one['metadata']['name']}"] = pod
    return found


# KFP's API server gives each step's pod this much itself: backend/src/v2/compiler/argocompiler/security_context.go in
# kubeflow/pipelines, since its pull request 12782. kfp-kubernetes has no function for these fields.
HARDENED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
HARDENED_POD = {"seccompProfile": {"type": "RuntimeDefault"}}


MOUNTS: dict[str, Callable[[Object], tuple[str, Object]]] = {
    "pvcMount": lambda one: (one["constant"], {"persistentVolumeClaim": {"claimName": one["constant"]}}),
    "secretAsVolume": lambda one: (
        one["secretName"],
        {"secret": {"secretName": one["secretName"], "optional": one.get("optional", False)}},
    ),
    "emptyDirMounts": lambda one: (
        one["volumeName"],
        {"emptyDir": {name: one[name] for name in ("medium", "sizeLimit") if name in one}},
    ),
}
"""How a volume is named and made of each kind of mount in the platform's settings."""


def steps(compiled: Path, account: str) -> dict[str, Object]:
    """Return the pods of a compiled pipeline's steps, by the step's label.

    A pod is made as KFP's API server and driver do (`extendPodSpecPatch` in backend/src/v2/driver/k8s.go): the step's
    container, the init container with KFP's launcher, and what the pipeline sets for Kubernetes. Argo's own containers,
    `init` and `wait`, are not here. Their security context is set in the installation's workflow-controller-configmap.

    Args:
        compiled: YAML file that `python -m pipelines compile` wrote.
        account: The service account of the run.

    Raises:
        KeyError: The pipeline sets a field for Kubernetes that is not known here.
    """
    specification, platform = yaml.safe_load_all(compiled.read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    name = specification["pipelineInfo"]["name"]
    return {
        label: _step(f"{name}-{label}", account, executor["container"], dict(executors[label]))
        for label, executor in specification["deploymentSpec"]["executors"].items()
    }


def _step(name: str, account: str, given: Object, own: Object) -> Object:
    launcher = {
        "name": "kfp-launcher",
        "image": "kfp-launcher",
        "securityContext": HARDENED | {"runAsNonRoot": True},
    }
    main = {
        "name": "main",
        "image": given["image"],
        "imagePullPolicy": own.pop("imagePullPolicy"),
        "command": given["command"] + given["args"],
        "env": given.get("env", [])
        + [_variable(one, key) for one in own.pop("secretAsEnv", []) for key in one["keyToEnv"]]
        + [
            {"name": one["name"], "valueFrom": {"fieldRef": {"fieldPath": one["fieldPath"]}}}
            for one in own.pop("fieldPathAsEnv", [])
        ],
        "resources": _resources(given["resources"]),
        "securityContext": HARDENED | _numbers(own.pop("securityContext")),
        "volumeMounts": [],
    }
    volumes = []
    for kind, source in MOUNTS.items():
        for one in own.pop(kind, []):
            volume, content = source(one)
            volumes.append({"name": volume} | content)
            main["volumeMounts"].append({"name": volume, "mountPath": one["mountPath"]})
    spec = {
        "restartPolicy": "Never",
        "serviceAccountName": account,
        "securityContext": HARDENED_POD,
        "initContainers": [launcher],
        "containers": [main],
        "volumes": volumes,
        "activeDeadlineSeconds": int(own.pop("activeDeadlineSeconds")),
    }
    if "tolerations" in own:
        spec["tolerations"] = own.pop("tolerations")
    if "nodeSelector" in own:
        spec["nodeSelector"] = own.pop("nodeSelector")["labels"]
    metadata = {"name": name} | own.pop("podMetadata")
    if own:
        raise KeyError(f"{name}: {', '.join(own)}")
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _variable(secret: Object, key: Object) -> Object:
    found = {"name": secret["secretName"], "key": key["secretKey"], "optional": secret.get("optional", False)}
    return {"name": key["envVar"], "valueFrom": {"secretKeyRef": found}}


def _resources(given: Object) -> Object:
    found: Object = {"requests": {}, "limits": {}}
    for resource in ("Cpu", "Memory"):
        for kind in ("Request", "Limit"):
            if amount := given.get(f"resource{resource}{kind}"):
                found[f"{kind.lower()}s"][resource.lower()] = amount
    if accelerator := given.get("accelerator"):
        found["limits"][accelerator["resourceType"]] = accelerator["resourceCount"]
    return found


def _numbers(context: Object) -> Object:
    """Return a security context with numbers for the texts that JSON of protocol buffers holds."""
    return {name: int(value) if isinstance(value, str) else value for name, value in context.items()}
