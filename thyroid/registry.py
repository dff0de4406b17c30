"""The artefact of a model, and the directory registry that keeps its versions.

    <root>/thyroid/<version>/      model.keras, model.json, reference.jpg, report.html, card.md, development.txt
    <root>/thyroid/aliases.json    {"candidate": newest, "champion": passed the gate, "previous": champion before}
    <root>/thyroid/history.jsonl   every change of an alias: when, what, who and why
    <root>/thyroid/readings.jsonl  which models' gates have read which test set
    <root>/thyroid/pending.json    a change that is on its way; what a killed process left here, the next one carries out

A version is written under a hidden name, flushed, and renamed: it is there whole or not at all. All changes hold a lock.

    python -m thyroid.registry {list,show,promote,rollback,gc} --registry DIR
"""

import argparse
import datetime
import fcntl
import getpass
import hashlib
import json
import os
import shutil
import time
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from thyroid import errors, tables
from thyroid.errors import InputError

NAME = "thyroid"
MODEL = "model.keras"
DEVELOPMENT = "development.txt"
"""SHA-256 of every scan that training or validation saw, one a line."""
_PENDING = "pending.json"
_READINGS = "readings.jsonl"
_SHOWN = ("version", "created", "backbone", "serving_domain", "image_size", "parent", "gate", "forms", "threshold")
_STALE_SECONDS = 24 * 3600  # a publication takes minutes: what lies half-written for longer was killed


@dataclass(frozen=True)
class Registered:
    """A published version: `uri` is its folder, `sha256` that of model.keras, `gate` the decision as it was carried out."""

    name: str
    version: int
    uri: str
    sha256: str
    gate: dict[str, Any]


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def code_version() -> str:
    """The package's version and the first digits of a SHA-256 over its source, which names the very code."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for file in sorted(path for path in package.rglob("*") if path.suffix in (".py", ".html", ".md")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return f"{package_version('thyroid')}+{digest.hexdigest()[:12]}"


def describe(artefact: Path, facts: dict[str, Any]) -> None:
    """Write model.json: `facts`, the code version, and the hash of every other file of the artefact."""
    files = sorted(path for path in artefact.rglob("*") if path.is_file() and path.name != "model.json")
    tables.write_json(
        artefact / "model.json",
        facts
        | {
            "code_version": code_version(),
            "files": {path.relative_to(artefact).as_posix(): sha256(path) for path in files},
        },
    )


def verify(artefact: Path, needs: Sequence[str] = ()) -> dict[str, Any]:
    """model.json of an artefact whose files all have the hashes it names.

    Raises:
        InputError: a file is missing or was changed, or model.json lacks one of the fields in `needs`; nothing of it has been
            loaded then.
    """
    try:
        facts = json.loads((artefact / "model.json").read_text())
    except FileNotFoundError:
        raise InputError(f"{artefact}: not a registered model (model.json is missing)") from None
    except ValueError as error:
        raise InputError(f"{artefact / 'model.json'}: not JSON: {error}") from None
    if missing := [field for field in ("files", *needs) if field not in facts]:
        raise InputError(
            f"{artefact / 'model.json'}: field {missing[0]} is missing; evaluate and register the model again"
        )
    for name, expected in facts["files"].items():
        file = artefact / name
        if not file.resolve().is_relative_to(artefact.resolve()):
            raise InputError(f"{artefact}: model.json names a file outside the model: {name}")
        if not file.is_file():
            raise InputError(f"{file}: missing from the model")
        if sha256(file) != expected:
            raise InputError(f"{file}: changed since it was registered (sha256 differs); register the model again")
    return facts


def load_keras(file: Path) -> Any:
    """A `.keras` file in safe mode (no Lambda, no code), without its compile state.

    Raises:
        InputError: the file is missing, damaged, or holds what safe mode refuses.
    """
    from thyroid.backend import XLA, keras

    try:
        model = keras.saving.load_model(file, compile=False, safe_mode=True)
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{file}: not a model that can be loaded ({errors.one_line(error)[:200]}); train it again"
        ) from None
    model.jit_compile = XLA
    return model


def publish(artefact: Path, root: Path, gate: dict[str, Any]) -> Registered:
    """Copy `artefact` into the registry as the next version: always the candidate, and the champion if the gate says so.

    Args:
        artefact: folder with model.json and the files it names.
        root: of the registry.
        gate: decision of `gate.decide`: decision, reasons, champion. If the champion has changed since it was decided,
            the version stays a candidate, and the reasons say so.

    Raises:
        InputError: the artefact is not whole.
    """
    verify(artefact)
    home = root / NAME
    home.mkdir(parents=True, exist_ok=True)
    incoming = home / f".incoming-{uuid.uuid4().hex}"
    try:
        shutil.copytree(artefact, incoming)
        with _lock(home):
            version = max(versions(root), default=0) + 1
            aliases = read_aliases(root)
            champion = aliases.get("champion")
            if gate["decision"] == "promoted" and gate["champion"] != champion:
                changed = f"the champion changed from {gate['champion']} to {champion} meanwhile: evaluate again"
                gate = gate | {"decision": "refused", "reasons": [*gate["reasons"], changed]}
            facts = json.loads((incoming / "model.json").read_text())
            created = {"version": version, "created": _now(), "parent": champion, "gate": gate}
            tables.write_json(incoming / "model.json", facts | created)
            for file in incoming.rglob("*"):
                _flush(file)
            new = aliases | {"candidate": version}
            if gate["decision"] == "promoted":
                new = _crowned(new, version)
            _plan(home, new, "publish", version, "; ".join(gate["reasons"]))
            incoming.rename(home / str(version))
            _flush(home)
            _carry_out(home)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    folder = home / str(version)
    return Registered(NAME, version, str(folder.resolve()), sha256(folder / MODEL), gate)


def promote(root: Path, which: str, reason: str, by: str) -> int:
    """Make a version the champion by hand, whatever its gate said; who and why is kept.

    Raises:
        InputError: there is no such version, it was changed, or no reason or name is given.
    """
    if not reason.strip() or not by.strip():
        raise InputError("promotion by hand needs --reason and --by: they stay in the registry's history")
    with _lock(root / NAME):
        folder = find(root, which)
        version = int(folder.name)
        verify(folder)
        _plan(root / NAME, _crowned(read_aliases(root), version), "promote", version, reason, by)
        _carry_out(root / NAME)
    return version


def roll_back(root: Path, reason: str, by: str, champion: int | None = None) -> int:
    """Make the previous champion the champion again; the one that it replaces becomes previous. Returns the champion.

    Args:
        root: of the registry.
        reason: stays in the history.
        by: who answers for it.
        champion: version that is to go; if the champion is another one by now, nothing is changed.

    Raises:
        InputError: there is no previous champion, or it was changed.
    """
    with _lock(root / NAME):
        aliases = read_aliases(root)
        if champion is not None and aliases.get("champion") != champion:
            return aliases["champion"]
        if "previous" not in aliases:
            raise InputError(f"{root}: no previous champion to roll back to")
        version = aliases["previous"]
        verify(find(root, "previous"))
        _plan(root / NAME, _crowned(aliases, version), "rollback", version, reason, by)
        _carry_out(root / NAME)
    return version


def collect_garbage(root: Path, keep: int, delete: bool = False) -> list[int]:
    """Versions that nothing needs: no alias names them and they are not among the newest `keep`; removed with `delete`.

    What a killed publication left half-written for a day goes, too.

    Raises:
        InputError: `keep` is below 1 (the newest version's number must not be given away again).
    """
    if keep < 1:
        raise InputError(f"--keep {keep}: at least the newest version stays")
    home = root / NAME
    if not home.is_dir():
        return []
    with _lock(home):
        needed = set(read_aliases(root).values()) | set(versions(root)[-keep:])
        going = [version for version in versions(root) if version not in needed]
        if delete:
            for version in going:
                (home / str(version)).rename(home / f".removed-{version}-{uuid.uuid4().hex}")
            for left in home.glob(".*-*"):
                old = time.time() - left.stat().st_mtime > _STALE_SECONDS
                if left.name.startswith(".removed-") or (left.name.startswith(".incoming-") and old):
                    shutil.rmtree(left, ignore_errors=True)
            if going:
                _plan(home, read_aliases(root), "gc", going[-1], f"removed {', '.join(map(str, going))}")
                _carry_out(home)
    return going


def read_test_set(root: Path | None, test_digest: str, model: str) -> int:
    """Note that a model's gate reads a test set; returns how many other models' gates have read it before.

    The more there were, the less a good figure on it means. Evaluations that are never registered count, too.

    Args:
        root: of the registry; None where there is none to note it in.
        test_digest: of `gate.test_digest`.
        model: SHA-256 of the model's file.
    """
    if root is None:
        return 0
    home = root / NAME
    home.mkdir(parents=True, exist_ok=True)
    with _lock(home):
        others = {one["model"] for one in _lines(home / _READINGS) if one["test_digest"] == test_digest} - {model}
        if not any(one == {"test_digest": test_digest, "model": model} for one in _lines(home / _READINGS)):
            _append(home / _READINGS, {"test_digest": test_digest, "model": model})
    return len(others)


def history(root: Path) -> list[dict[str, Any]]:
    """Every change of the aliases, oldest first: when, action, version, by, reason and aliases."""
    return _lines(root / NAME / "history.jsonl")


def _lines(file: Path) -> list[dict[str, Any]]:
    """Whole lines of a JSON lines file; what a power cut left of a last one does not count."""
    try:
        return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise InputError(f"{file}: not JSON lines: {error}") from None


def _append(file: Path, line: dict[str, Any]) -> None:
    """Add a line that is not the last one yet, in place of what a power cut left of one; the caller holds the lock."""
    text = (json.dumps(line, ensure_ascii=False) + "\n").encode()
    with file.open("a+b") as stream:
        stream.seek(0)
        whole = stream.read()
        stream.truncate(whole.rfind(b"\n") + 1)
        if not whole.endswith(text):
            stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _crowned(aliases: dict[str, int], version: int) -> dict[str, int]:
    """`aliases` with another champion."""
    if "champion" in aliases and aliases["champion"] != version:
        aliases = aliases | {"previous": aliases["champion"]}
    return aliases | {"champion": version}


def _plan(home: Path, aliases: dict[str, int], action: str, version: int, reason: str, by: str = "pipeline") -> None:
    """Write down a change of the aliases before it is made; the caller holds the lock."""
    line = {"when": _now(), "action": action, "version": version, "by": by, "reason": reason, "aliases": aliases}
    tables.write_json(home / _PENDING, line)
    _flush(home / _PENDING)
    _flush(home)


def _carry_out(home: Path) -> None:
    """Make the change that was planned, also if a process was killed while making it; without a plan nothing.

    A publication whose version never came to be is dropped: it has changed nothing.
    """
    pending = home / _PENDING
    if not pending.exists():
        return
    try:
        line = json.loads(pending.read_text())
    except ValueError as error:
        raise InputError(f"{pending}: not JSON ({error}); look at {home / 'history.jsonl'} and remove it") from None
    if line["action"] != "publish" or (home / str(line["version"])).is_dir():
        _append(home / "history.jsonl", line)
        tables.write_json(home / "aliases.json", line["aliases"])
        _flush(home / "aliases.json")
    pending.unlink()
    _flush(home)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def versions(root: Path) -> list[int]:
    """Published versions, oldest first."""
    home = root / NAME
    return sorted(int(path.name) for path in home.iterdir() if path.name.isdigit()) if home.is_dir() else []


def read_aliases(root: Path) -> dict[str, int]:
    """Alias to version; empty for a new registry."""
    try:
        return json.loads((root / NAME / "aliases.json").read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{root / NAME / 'aliases.json'}: not JSON: {error}") from None


def find(root: Path, which: str | None = None) -> Path:
    """Folder of a version or alias; None for the champion, or the candidate where there is none.

    Raises:
        InputError: there is no such version.
    """
    aliases = read_aliases(root)
    number = aliases.get("champion", aliases.get("candidate")) if which is None else aliases.get(which, which)
    folder = root / NAME / str(number)
    if number is None or not str(number).isdigit() or not folder.is_dir():
        raise InputError(
            f"{root}: no registered model{'' if which is None else ' ' + repr(which)}; `make run` registers one"
        )
    return folder


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    if not home.is_dir():
        raise InputError(f"{home.parent}: no registry here; `make run` makes one")
    with (home / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _carry_out(home)
        yield


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise InputError("this user has no name here; say who answers for it with --by") from None


def _list(root: Path) -> None:
    names: dict[int, list[str]] = {}
    for alias, version in read_aliases(root).items():
        names.setdefault(version, []).append(alias)
    print(f"{'version':<9}{'created':<27}{'backbone':<16}{'domain':<9}{'test AUROC':<24}{'gate':<10}aliases")
    for version in versions(root):
        try:
            facts = verify(root / NAME / str(version), _SHOWN)
        except InputError as error:
            print(f"{version:<9}damaged: {error}")
            continue
        auroc = facts["forms"]["keras"]["test"][facts["serving_domain"]]["auroc"]
        shown = f"{auroc['value']:.3f}" + (
            "" if auroc["low"] is None else f" [{auroc['low']:.3f}, {auroc['high']:.3f}]"
        )
        print(
            f"{version:<9}{facts['created']:<27}{facts['backbone']:<16}{facts['serving_domain']:<9}{shown:<24}"
            f"{facts['gate']['decision']:<10}{', '.join(names.get(version, []))}"
        )


def _show(root: Path, which: str) -> None:
    folder = find(root, which)
    facts = verify(folder, _SHOWN)
    auroc = facts["forms"]["keras"]["test"][facts["serving_domain"]]["auroc"]
    print(f"version {facts['version']} of {facts['created']}: {folder}")
    print(f"{facts['backbone']} on {facts['domain']} images, {facts['image_size']} px, code {facts['code_version']}")
    print(f"data {facts['data_digest'][:12]}, parent {facts['parent'] or 'none'}")
    print(
        f"test AUROC {auroc['value']:.3f}, threshold {facts['threshold']:.4f}, temperature {facts['temperature']:.3f}"
    )
    print(f"gate: {facts['gate']['decision']}")
    for reason in facts["gate"]["reasons"]:
        print(f"  {reason}")
    for one in facts["gate"].get("criteria", []):
        word = "holds" if one["passed"] else "waived" if one["waived"] else "FAILS"
        print(f"  {word:<7}{one['name']}: {one['found']} (asked: {one['asked']})")
    for line in history(root):
        if line["version"] == facts["version"]:
            print(f"{line['when']} {line['action']} by {line['by']}: {line['reason']}")


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m thyroid.registry", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--registry", type=Path, required=True, help="root of the registry")
    who = argparse.ArgumentParser(add_help=False)
    who.add_argument("--reason", required=True, help="stays in the registry's history")
    who.add_argument("--by", help="who answers for it; default: the user's name")
    commands.add_parser("list", parents=[common], help="every version, its gate and its aliases")
    showing = commands.add_parser("show", parents=[common], help="one version: figures and gate")
    showing.add_argument("version", help="number or alias")
    promoting = commands.add_parser("promote", parents=[common, who], help="make a version the champion by hand")
    promoting.add_argument("version", help="number or alias")
    commands.add_parser("rollback", parents=[common, who], help="make the previous champion the champion again")
    collecting = commands.add_parser("gc", parents=[common], help="what nothing needs any more; removed with --delete")
    collecting.add_argument("--keep", type=int, default=5, help="newest versions to keep beside those with an alias")
    collecting.add_argument("--delete", action="store_true")
    chosen = parser.parse_args(argv)
    root = chosen.registry
    if chosen.command == "list":
        _list(root)
    elif chosen.command == "show":
        _show(root, chosen.version)
    elif chosen.command == "promote":
        print(f"champion: version {promote(root, chosen.version, chosen.reason, chosen.by or _user())}")
    elif chosen.command == "rollback":
        print(f"champion: version {roll_back(root, chosen.reason, chosen.by or _user())}")
    else:
        going = collect_garbage(root, chosen.keep, chosen.delete)
        word = "removed" if chosen.delete else "would be removed (with --delete)"
        print(f"{word}: {', '.join(map(str, going)) or 'nothing'}")


if __name__ == "__main__":
    raise SystemExit(main())
