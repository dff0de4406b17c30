"""The commands of the registry: list, show, promote, rollback and gc.

python -m thyroid.registry {list,show,promote,rollback,gc} --registry DIR
"""

import argparse
import getpass
from collections.abc import Sequence
from typing import Any

from thyroid import errors, storage
from thyroid.errors import InputError
from thyroid.model import artefacts
from thyroid.registry.registry import Registry

_SHOWN = ("version", "created", "backbone", "serving_domain", "image_size", "parent", "gate", "forms", "threshold")


def _list(registry: Registry) -> None:
    names: dict[int, list[str]] = {}
    for alias, version in registry.read_aliases().items():
        names.setdefault(version, []).append(alias)
    print(f"{'version':<9}{'created':<27}{'backbone':<16}{'domain':<9}{'test AUROC':<24}{'gate':<10}aliases")
    for version in registry.versions():
        try:
            row = _description(registry, str(version))
        except InputError as error:
            print(f"{version:<9}damaged: {error}")
            continue
        auroc = row["forms"]["keras"]["test"][row["serving_domain"]]["auroc"]
        shown = f"{auroc['value']:.3f}" + (
            "" if auroc["low"] is None else f" [{auroc['low']:.3f}, {auroc['high']:.3f}]"
        )
        print(
            f"{version:<9}{row['created']:<27}{row['backbone']:<16}{row['serving_domain']:<9}{shown:<24}"
            f"{row['gate']['decision']:<10}{', '.join(names.get(version, []))}"
        )


def _description(registry: Registry, which: str) -> dict[str, Any]:
    """Return the facts that the commands show. Other files of a bucket are not checked, to avoid downloads."""
    if storage.is_bucket(registry.root):
        return artefacts.facts(registry.find(which, artefacts.CARD), _SHOWN)
    return artefacts.verify(registry.find(which), _SHOWN)


def _show(registry: Registry, which: str) -> None:
    row = _description(registry, which)
    auroc = row["forms"]["keras"]["test"][row["serving_domain"]]["auroc"]
    print(f"version {row['version']} of {row['created']}: {registry.address(row['version'])}")
    print(f"{row['backbone']} on {row['domain']} images, {row['image_size']} px, code {row['code_version']}")
    print(f"data {row['data_digest'][:12]}, parent {row['parent'] or 'none'}")
    print(f"test AUROC {auroc['value']:.3f}, threshold {row['threshold']:.4f}, temperature {row['temperature']:.3f}")
    print(f"gate: {row['gate']['decision']}")
    for reason in row["gate"]["reasons"]:
        print(f"  {reason}")
    for criterion in row["gate"].get("criteria", []):
        word = "holds" if criterion["passed"] else "waived" if criterion["waived"] else "FAILS"
        print(f"  {word:<7}{criterion['name']}: {criterion['found']} (asked: {criterion['asked']})")
    for line in registry.history():
        if line["version"] == row["version"]:
            print(f"{line['when']} {line['action']} by {line['by']}: {line['reason']}")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise InputError(
            "this user has no name here; give the name of the person who answers for it with --by"
        ) from None


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run a command of the registry."""
    parser = argparse.ArgumentParser(prog="python -m thyroid.registry", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--registry", required=True, help="root of the registry: a folder, or gs://bucket/prefix")
    who = argparse.ArgumentParser(add_help=False)
    who.add_argument("--reason", required=True, help="reason, which stays in the registry's history")
    who.add_argument("--by", help="name of the person who answers for it; default: the user's name")
    commands.add_parser("list", parents=[common], help="all versions with their gates and aliases")
    showing = commands.add_parser("show", parents=[common], help="one version: its metrics and its gate")
    showing.add_argument("version", help="number or alias")
    promoting = commands.add_parser("promote", parents=[common, who], help="make a version the champion by hand")
    promoting.add_argument("version", help="number or alias")
    commands.add_parser("rollback", parents=[common, who], help="make the previous champion the champion again")
    collecting = commands.add_parser(
        "gc", parents=[common], help="versions that are no longer needed; --delete removes them"
    )
    collecting.add_argument(
        "--keep", type=int, default=5, help="number of newest versions to keep in addition to those with an alias"
    )
    collecting.add_argument("--delete", action="store_true")
    chosen = parser.parse_args(argv)
    registry = Registry(chosen.registry)
    if chosen.command == "list":
        _list(registry)
    elif chosen.command == "show":
        _show(registry, chosen.version)
    elif chosen.command == "promote":
        print(f"champion: version {registry.promote(chosen.version, chosen.reason, chosen.by or _user())}")
    elif chosen.command == "rollback":
        print(f"champion: version {registry.roll_back(chosen.reason, chosen.by or _user())}")
    else:
        going = registry.collect_garbage(chosen.keep, chosen.delete)
        word = "removed" if chosen.delete else "would be removed (with --delete)"
        print(f"{word}: {', '.join(map(str, going)) or 'nothing'}")


if __name__ == "__main__":
    raise SystemExit(main())
