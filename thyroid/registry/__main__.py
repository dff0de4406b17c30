"""The commands of the registry: list, show, promote, rollback, gc and hub.

python -m thyroid.registry {list,show,promote,rollback,gc,hub} --registry DIR
"""

from collections.abc import Callable
from typing import Annotated

from cyclopts import Parameter

from thyroid import RESEARCH_USE_ONLY, command, storage
from thyroid.errors import InputError
from thyroid.interval import format_interval
from thyroid.model.artefact import CARD, Artefact
from thyroid.records.validation import ValidationEntry
from thyroid.registry import validations
from thyroid.registry.beside import watches
from thyroid.registry.hub import hub as kubeflow
from thyroid.registry.registry import Registry
from thyroid.storage import Location

_Root = Annotated[Location, Parameter(help="Root of the registry: a folder, or a gs:// or s3:// prefix.")]
_Version = Annotated[str, Parameter(help="Number or alias of the version.")]
_Reason = Annotated[str, Parameter(help="Reason, which stays in the registry's history.")]
_By = Annotated[str, Parameter(help="Name of the responsible person; if not given, the user's name.")]


def _list(*, registry: _Root) -> None:
    """List all versions: gate, number of sites that it was validated at, verdict of the watch, and aliases of each."""
    root = Registry(registry)
    names: dict[int, list[str]] = {}
    for alias, version in root.read_aliases().items():
        names.setdefault(version, []).append(alias)
    print(
        f"{'version':<9}{'created':<27}{'backbone':<16}{'domain':<9}{'test AUROC':<24}{'gate':<10}{'sites':<9}"
        f"{'watch':<9}aliases"
    )
    for version in root.versions():
        try:
            artefact = _read(root, str(version))
            known, auroc = artefact.publication, artefact.performance.auroc
        except InputError as error:
            print(f"{version:<9}damaged: {error}")
            continue
        print(
            f"{version:<9}{known.created:<27}{artefact.record.backbone:<16}{artefact.record.serving_domain:<9}"
            f"{auroc or 'n/a'!s:<24}{known.gate.decision:<10}{_sites(root, version):<9}{_watch(root, version):<9}"
            f"{', '.join([*names.get(version, []), *_origin(artefact)])}"
        )


def _origin(artefact: Artefact) -> list[str]:
    """Say what a recalibrated version was made for: its test figures are those of that site, cross-fitted."""
    site, parent = artefact.record.recalibrated_for, artefact.record.recalibrated_from
    return [] if site is None else [f"version {parent} recalibrated for {site}, tested there"]


def _sites(registry: Registry, version: int) -> str:
    """Return the number of sites that a version was validated at, or that the file which says so is damaged."""
    try:
        return str(validations.sites(validations.read(registry, version)))
    except InputError:
        return "damaged"


def _watch(registry: Registry, version: int) -> str:
    """Return the newest verdict of the watch on a version, or that the file which has it is damaged."""
    try:
        entry = watches.last(registry, version)
    except InputError:
        return "damaged"
    return "-" if entry is None else entry.verdict


def _read(registry: Registry, which: str) -> Artefact:
    """Return the artefact of a version. Of a bucket only model.json is checked, to avoid downloads."""
    if storage.is_bucket(registry.root):
        return Artefact.read(registry.find(which, CARD))
    return Artefact.verify(registry.find(which))


def _show(version: _Version, /, *, registry: _Root) -> None:
    """Show one version: its metrics, its gate, its external validations and what the watch says of it."""
    root = Registry(registry)
    artefact = _read(root, version)
    row, known, auroc = artefact.record, artefact.publication, artefact.performance.auroc
    print(f"version {known.version} of {known.created}: {root.address(known.version)}")
    print(f"{row.backbone} on {row.domain} images, {row.image_size} px, code {row.code_version}")
    print(f"data {row.data_digest[:12]}, parent {known.parent or 'none'}")
    print(f"test AUROC {auroc or 'n/a'}, threshold {row.threshold:.4f}, temperature {row.temperature:.3f}")
    for origin in _origin(artefact):
        print(origin)
    print(f"gate: {known.gate.decision}")
    for reason in known.gate.reasons:
        print(f"  {reason}")
    for criterion in known.gate.criteria:
        word = "holds" if criterion.passed else "waived" if criterion.waived else "FAILS"
        print(f"  {word:<7}{criterion.name}: {criterion.found} (required: {criterion.asked})")
    for line in root.history():
        if line["version"] == known.version:
            print(f"{line['when']} {line['action']} by {line['by']}: {line['reason']}")
    _print_watch(root, known.version)
    try:
        entries = validations.read(root, known.version)
    except InputError as error:
        print(f"validations: {error}")
    else:
        print(f"sites that it was validated at: {validations.sites(entries)}")
        for entry in entries:
            _print_validation(entry)


def _print_watch(registry: Registry, version: int) -> None:
    """Print the newest verdict of the watch on a version."""
    try:
        entry = watches.last(registry, version)
    except InputError as error:
        print(f"watch: {error}")
        return
    if entry is None:
        print("watch: never")
    else:
        since = "" if entry.since is None else f" since {entry.since}"
        print(f"watch on {entry.night}: {entry.verdict}{since}: {entry.summary}")


def _print_validation(entry: ValidationEntry) -> None:
    """Print an external validation in two lines, and a third one if it has a warning."""
    synthetic = f", {entry.synthetic} scans synthetic" if entry.synthetic else ""
    print(
        f"{entry.created} {entry.site} by {entry.by}: {entry.images} images of {entry.patients} patients, "
        f"{entry.malignant_patients} malignant, {validations.BOXES.get(entry.boxes, entry.boxes)}{synthetic}"
    )
    shown = []
    for name, key in (("AUROC", "auroc"), ("sensitivity", "sensitivity"), ("specificity", "specificity")):
        if (beside := entry.figures.get(key)) is not None:
            internal = "n/a" if beside.internal is None else f"{beside.internal.value:.3f}"
            difference = format_interval(beside.difference)
            shown.append(f"{name} {format_interval(beside.external)} (internal {internal}, difference {difference})")
    print(f"  {', '.join(shown) or 'no figures'}")
    if validations.falls(entry):
        print("  WARNING: the AUROC is lower than in the internal test")


def _promote(version: _Version, /, *, registry: _Root, reason: _Reason, by: _By = "") -> None:
    """Make a version the champion by hand."""
    root = Registry(registry)
    print(f"champion: version {root.promote(version, reason, by or command.user_name())}")
    kubeflow.update(root)


def _roll_back(*, registry: _Root, reason: _Reason, by: _By = "") -> None:
    """Make the previous champion the champion again."""
    root = Registry(registry)
    print(f"champion: version {root.roll_back(reason, by or command.user_name())}")
    kubeflow.update(root)


def _collect_garbage(*, registry: _Root, keep: int = 5, delete: bool = False) -> None:
    """List the versions that are no longer needed; --delete removes them.

    Args:
        registry: Root of the registry.
        keep: Number of newest versions to keep in addition to those with an alias.
        delete: Remove them.
    """
    root = Registry(registry)
    going = root.collect_garbage(keep, delete)
    word = "removed" if delete else "would be removed (with --delete)"
    print(f"{word}: {', '.join(map(str, going)) or 'nothing'}")
    if delete:
        kubeflow.update(root)


def _hub(*, registry: _Root, hub: str = "") -> None:
    """Enter the versions in Kubeflow Hub, and set their states there to what the registry says.

    Args:
        registry: Root of the registry.
        hub: Address of Kubeflow Hub, URL#NAME for another model name than thyroid; without it, the last one.
    """
    record = kubeflow.enter(Registry(registry), hub)
    print(f"{record.url}: registered model {record.model} with {len(record.versions)} versions. {RESEARCH_USE_ONLY}")


COMMANDS: dict[str, Callable[..., None]] = {
    "list": _list,
    "show": _show,
    "promote": _promote,
    "rollback": _roll_back,
    "gc": _collect_garbage,
    "hub": _hub,
}
main = command.main("python -m thyroid.registry", COMMANDS, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
