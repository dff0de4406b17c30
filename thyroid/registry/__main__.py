"""The commands of the registry: list, show, promote, rollback and gc.

python -m thyroid.registry {list,show,promote,rollback,gc} --registry DIR
"""

import getpass
from collections.abc import Callable
from typing import Annotated

from cyclopts import Parameter

from thyroid import command, storage
from thyroid.errors import InputError
from thyroid.model.artefact import CARD, Artefact
from thyroid.registry.registry import Registry
from thyroid.storage import Location

_Root = Annotated[Location, Parameter(help="Root of the registry: a folder, or gs://bucket/prefix.")]
_Version = Annotated[str, Parameter(help="Number or alias of the version.")]
_Reason = Annotated[str, Parameter(help="Reason, which stays in the registry's history.")]
_By = Annotated[str, Parameter(help="Name of the responsible person; if not given, the user's name.")]


def _list(*, registry: _Root) -> None:
    """List all versions with their gates and aliases."""
    root = Registry(registry)
    names: dict[int, list[str]] = {}
    for alias, version in root.read_aliases().items():
        names.setdefault(version, []).append(alias)
    print(f"{'version':<9}{'created':<27}{'backbone':<16}{'domain':<9}{'test AUROC':<24}{'gate':<10}aliases")
    for version in root.versions():
        try:
            artefact = _read(root, str(version))
            known, auroc = artefact.publication, artefact.performance.auroc
        except InputError as error:
            print(f"{version:<9}damaged: {error}")
            continue
        print(
            f"{version:<9}{known.created:<27}{artefact.record.backbone:<16}{artefact.record.serving_domain:<9}"
            f"{auroc or 'n/a'!s:<24}{known.gate.decision:<10}{', '.join(names.get(version, []))}"
        )


def _read(registry: Registry, which: str) -> Artefact:
    """Return the artefact of a version. Of a bucket only model.json is checked, to avoid downloads."""
    if storage.is_bucket(registry.root):
        return Artefact.read(registry.find(which, CARD))
    return Artefact.verify(registry.find(which))


def _show(version: _Version, /, *, registry: _Root) -> None:
    """Show one version: its metrics and its gate."""
    root = Registry(registry)
    artefact = _read(root, version)
    row, known, auroc = artefact.record, artefact.publication, artefact.performance.auroc
    print(f"version {known.version} of {known.created}: {root.address(known.version)}")
    print(f"{row.backbone} on {row.domain} images, {row.image_size} px, code {row.code_version}")
    print(f"data {row.data_digest[:12]}, parent {known.parent or 'none'}")
    print(f"test AUROC {auroc or 'n/a'}, threshold {row.threshold:.4f}, temperature {row.temperature:.3f}")
    print(f"gate: {known.gate.decision}")
    for reason in known.gate.reasons:
        print(f"  {reason}")
    for criterion in known.gate.criteria:
        word = "holds" if criterion.passed else "waived" if criterion.waived else "FAILS"
        print(f"  {word:<7}{criterion.name}: {criterion.found} (required: {criterion.asked})")
    for line in root.history():
        if line["version"] == known.version:
            print(f"{line['when']} {line['action']} by {line['by']}: {line['reason']}")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise InputError(
            "the current user has no name on this system; give the name of the responsible person with --by"
        ) from None


def _promote(version: _Version, /, *, registry: _Root, reason: _Reason, by: _By = "") -> None:
    """Make a version the champion by hand."""
    print(f"champion: version {Registry(registry).promote(version, reason, by or _user())}")


def _roll_back(*, registry: _Root, reason: _Reason, by: _By = "") -> None:
    """Make the previous champion the champion again."""
    print(f"champion: version {Registry(registry).roll_back(reason, by or _user())}")


def _collect_garbage(*, registry: _Root, keep: int = 5, delete: bool = False) -> None:
    """List the versions that are no longer needed; --delete removes them.

    Args:
        registry: Root of the registry.
        keep: Number of newest versions to keep in addition to those with an alias.
        delete: Remove them.
    """
    going = Registry(registry).collect_garbage(keep, delete)
    word = "removed" if delete else "would be removed (with --delete)"
    print(f"{word}: {', '.join(map(str, going)) or 'nothing'}")


COMMANDS: dict[str, Callable[..., None]] = {
    "list": _list,
    "show": _show,
    "promote": _promote,
    "rollback": _roll_back,
    "gc": _collect_garbage,
}
main = command.main("python -m thyroid.registry", COMMANDS, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
