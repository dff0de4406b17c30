"""The configuration of a run on this machine: its values come from the preset, run.yaml and the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from thyroid import atomic, storage
from thyroid.command import nearest
from thyroid.deploy.options import DeployOptions
from thyroid.errors import InputError
from thyroid.evaluate.options import EvaluateOptions
from thyroid.ingest.options import IngestOptions
from thyroid.locate.options import LocateOptions
from thyroid.model import backbones as networks
from thyroid.records.settings import MARGIN
from thyroid.train.options import TrainOptions

if TYPE_CHECKING:
    from pipelines.parameters import Parameter

FILE = "run.yaml"
"""File in the output with the configuration of the run that made it."""

PRESETS: dict[str, dict[str, Any]] = {
    # takes minutes on two CPU cores and downloads nothing
    "quick": {"image_size": 64, "epochs": 3, "batch_size": 32, "weights": "none", "domains": ""},
    # the deck's setting: 224 pixels, 15 epochs, batches of 32, ImageNet weights
    "standard": {"image_size": 224, "epochs": 15, "batch_size": 32, "weights": "imagenet", "domains": ""},
    # both domains, so that the domain matrix is complete; larger images; trains until validation stops improving
    "full": {"image_size": 320, "epochs": 50, "batch_size": 32, "weights": "imagenet", "domains": "normal,cropped"},
}
TRIALS: dict[str, dict[str, int]] = {
    "quick": {"head_trials": 60, "image_trials": 8, "folds": 3},
    "standard": {"head_trials": 200, "image_trials": 24, "folds": 5},
    "full": {"head_trials": 400, "image_trials": 48, "folds": 5},
}
"""For each preset, the trials and folds of a search."""

DEFAULTS: dict[str, str] = {
    "scans": "synthetic sample scans",
    "registry": "OUTPUT/registry",
    "store": "OUTPUT/store",
    "domains": "the preset's",
    "margin": f"the settings', else {MARGIN:g}",
    "weights": "the preset's",
    "image_size": "the preset's",
    "epochs": "the preset's",
    "batch_size": "the preset's",
    "head_trials": "the preset's",
    "image_trials": "the preset's",
    "output": "output",
    "preset": "quick",
    "backbones": "all five",
    "engine": "none: processes of this environment",
    "config": "none",
}
"""Defaults of a run on this machine that are not those of the pipeline, in words."""

LOCATIONS = {
    field.name
    for options in (IngestOptions, TrainOptions, LocateOptions, EvaluateOptions)
    for field in fields(options)
    if field.type == storage.Location
}
"""Parameters that are files, folders or addresses of buckets."""

WRITTEN = {"store", "registry"}
"""Locations that a run writes; where they are not given, they are folders in the output."""

DEPLOYMENT = {field.name for field in fields(DeployOptions)}
"""Parameters of the deployment, which a run on this machine does not have."""


@dataclass(frozen=True)
class LocalOptions:
    """What a run on this machine has beyond the pipeline's parameters.

    Attributes:
        output: Folder of the results, new or made by an earlier run, whose results it replaces. The next run on the
            same scans reads only what is new, and keeps its splits.
        preset: quick (64 px, 3 epochs, no download), standard (224 px, 15 epochs, ImageNet) or full (320 px, up to 50
            epochs, both domains, ImageNet).
        backbones: Names with commas, of EfficientNetB7, VGG16, VGG19, ResNet50 and ResNet101.
        engine: podman or docker runs every step in its image (make images).
        config: YAML file with any of these parameters and their values, such as the run.yaml of an earlier run; the
            command line overrides it.
    """

    output: Path = Path("output")
    preset: Literal["quick", "standard", "full"] | None = None
    backbones: str | None = None
    engine: Literal["podman", "docker"] | None = None
    config: Path | None = None

    @property
    def folder(self) -> Path:
        """The absolute path of the output."""
        return self.output.resolve()


@dataclass(frozen=True)
class Configuration:
    """The values that a run uses.

    Attributes:
        preset: Name of the preset.
        backbones: Names of the backbones.
        values: Value of each parameter of the pipeline that a local run has. Locations are absolute. Empty scans, store
            and registry mean synthetic sample scans, and folders in the output.
    """

    preset: str
    backbones: Sequence[str]
    values: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        """Return the value of a parameter."""
        return self.values[name]

    def listed(self, name: str) -> list[str]:
        """Return the items of a parameter that is a list with commas."""
        return [item for item in self.values[name].split(",") if item]

    def arguments(self, output: Path) -> dict[str, Any]:
        """Return the arguments of the pipeline.

        Args:
            output: Folder for what is not given: sample scans, the store and the registry.
        """
        result = dict(self.values)
        if not result["scans"]:
            result |= {"scans": str(output / "sample" / "scans"), "rois": str(output / "sample" / "rois.csv")}
        for name in WRITTEN & result.keys():
            result[name] = result[name] or str(output / name)
        return result

    def text(self) -> str:
        """Return the content of run.yaml, which repeats the run."""
        command = "sweep" if "head_trials" in self.values else "run"
        lines = [f"# Repeats this run: python -m pipelines {command} --config run.yaml --output FOLDER"]
        if not self.values["scans"]:
            lines.append("# No scans were given: synthetic sample scans were drawn with this seed.")
        lines.append("# An empty registry or store means the one in the output.")
        content = {"preset": self.preset, "backbones": ",".join(self.backbones)} | dict(self.values)
        return "\n".join([*lines, yaml.safe_dump(content, sort_keys=False, allow_unicode=True)])

    def write(self, output: Path) -> None:
        """Write run.yaml to the output."""
        atomic.write_bytes(output / FILE, self.text().encode())


def resolve(
    parameters: Mapping[str, "Parameter"], options: LocalOptions, given: Mapping[str, Any], default_backbones: str = ""
) -> Configuration:
    """Return the configuration: the pipeline's defaults, then the preset, then the file, then the command line.

    Args:
        parameters: Parameters of the pipeline that a local run has, by name.
        options: The other options of the command line.
        given: Values of parameters from the command line.
        default_backbones: Backbones with commas if none are given; empty for all.

    Raises:
        InputError: The file cannot be read, or one of its keys or values cannot be used; or a backbone is unknown.
    """
    file = read(options.config, parameters) if options.config else {}
    preset = options.preset or file.pop("preset", "quick")
    file.pop("preset", None)
    names = file.pop("backbones", "") or default_backbones or ",".join(networks.BACKBONES)
    names = options.backbones or names
    values = {name: "" if parameter.default is None else parameter.default for name, parameter in parameters.items()}
    for source in (PRESETS[preset] | TRIALS[preset] if "head_trials" in parameters else PRESETS[preset], file, given):
        values |= source
    for name in LOCATIONS & values.keys():
        values[name] = storage.at(values[name]).address if values[name] else ""
    if Path(values["weights"]).exists():
        values["weights"] = storage.at(values["weights"]).address
    return Configuration(preset, [networks.get(name).name for name in names.split(",")], values)


def read(path: Path, parameters: Mapping[str, "Parameter"]) -> dict[str, Any]:
    """Read a run.yaml.

    Args:
        path: The file.
        parameters: Parameters that it may hold, by name. It may also hold preset and backbones. Options of the
            deployment, which the file of a run on Kubeflow holds, are ignored, since a local run deploys nothing.

    Returns:
        The values that are not empty, by name.

    Raises:
        InputError: There is no such file, it is not a YAML mapping, a key is unknown, or a value is not of its type.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"--config {path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: not YAML: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"--config {path}: expected parameters and their values")
    kinds = {"preset": str, "backbones": str} | {name: parameter.kind for name, parameter in parameters.items()}
    result = {}
    for key, value in content.items():
        if key in DEPLOYMENT:
            continue
        if key not in kinds:
            raise InputError(f"--config {path}: {key} is unknown{nearest(str(key), kinds)}")
        if value is not None:
            result[key] = _convert(f"--config {path}: {key}", value, kinds[key])
    if result.get("preset", "quick") not in PRESETS:
        raise InputError(f"--config {path}: preset {result['preset']!r}{nearest(result['preset'], PRESETS)}")
    return result


def _convert(place: str, value: Any, kind: type) -> Any:
    """Return a value of a YAML file as a parameter's type; a number is accepted where a text is expected."""
    accepted = {str: (str, int, float), float: (int, float), int: (int,), bool: (bool,)}[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        words = {str: "a text", float: "a number", int: "a whole number", bool: "true or false"}
        raise InputError(f"{place}: expected {words[kind]}, found {value!r}")
    return kind(value)
