"""The registry, which keeps every published version of the model: a folder, or gs://bucket/prefix.

    <root>/thyroid/<version>/      model.keras, model.json and its sum, reference.jpg, report.html, card.md, scans.csv
    <root>/thyroid/aliases.json    {"candidate": newest version,
                                    "champion": version that passed the gate, or was promoted by hand,
                                    "previous": champion before it,
                                    "anchor": champion with which candidates are compared until one proves better,
                                    "versions": {number: {"source": SHA-256 of model.json as `publish` received it,
                                                          "published": SHA-256 of model.json as it is here}},
                                    "history": every change of an alias, and what became of a version that was sent to
                                               a cluster: when, what, who and why,
                                    "readings": which models' gates have read which test set,
                                    "sha256": hash of all of the above as it is written}

The hashes form a chain: model.json has the hash of every other file of a version, aliases.json has the hash of every
model.json, and aliases.json also has a hash of itself.

A version exists when aliases.json names it, which happens after its last file was written. Every change replaces
exactly the aliases.json that it was based on. If another process was faster, the change is decided again. `.claim` in a
version's folder belongs to a publication that is in progress or was killed.

    python -m thyroid.registry {list,show,promote,rollback,gc} --registry DIR
"""

import argparse
import contextlib
import copy
import datetime
import getpass
import hashlib
import json
import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from thyroid import errors, storage
from thyroid.errors import InputError
from thyroid.model import artefacts
from thyroid.storage import ABSENT, ChangedError, Location

NAME = "thyroid"
_ALIASES = ("candidate", "champion", "previous", "anchor")
_STATE, _CLAIM = "aliases.json", ".claim"
_FIELDS = ("versions", "history", "readings")
_SEAL = "sha256"
_CREATED = ("version", "created", "parent", "gate")  # fields that a publication adds to model.json
_SHOWN = ("version", "created", "backbone", "serving_domain", "image_size", "parent", "gate", "forms", "threshold")
_STALE = datetime.timedelta(days=1)  # a publication takes minutes, so one that is older than this was killed
_PAUSE = 0.2  # maximum seconds before a change is tried again because another process was faster

State = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Registered:
    """A published version.

    Attributes:
        name: Name of the model.
        version: Number of the version.
        uri: Folder or gs:// address of the version.
        sha256: SHA-256 of model.keras.
        gate: The gate's decision as it was carried out.
    """

    name: str
    version: int
    uri: str
    sha256: str
    gate: dict[str, Any]


def publish(artefact: Path, root: Location, gate: dict[str, Any]) -> Registered:
    """Copy `artefact` into the registry as the next version.

    The version always becomes the candidate, and it becomes the champion if the gate says so. If the artefact is
    already published, its version is returned as it is, and repaired if a file was lost. For this reason a step that is
    retried does not register a model twice.

    Args:
        artefact: Folder with model.json and the files it names.
        root: Root of the registry.
        gate: Decision of `gate.decide`: decision, reasons, champion. If the champion has changed since the decision,
            the version stays a candidate, and the reasons say so.

    Returns:
        The published version.

    Raises:
        InputError: The artefact is incomplete, or the registry cannot be written.
    """
    given, source = artefacts.verify(artefact), artefacts.sha256(artefact / "model.json")
    home = _home(root)
    if (twin := _published(_read(home)[0], source)) is not None:
        try:
            artefacts.verify(find(root, str(twin)))
        except InputError:
            home.put(artefact, str(twin), list(given["files"]))
            home.write(f"{twin}/{artefacts.SUM}", artefacts.sum_of(_read(home)[0]["versions"][str(twin)]["published"]))
        return _registered(root, twin)
    number, claim = _claim(home)
    try:
        home.put(artefact, str(number), list(given["files"]))
    except OSError:  # such as a full disk; `collect_garbage` removes what any other interruption leaves
        home.remove(str(number))
        raise

    def commit(state: State) -> int | None:
        if (twin := _published(state, source)) is not None:
            return twin
        if home.read(f"{number}/{_CLAIM}")[0] != claim:
            return None
        champion, decided = state.get("champion"), gate
        if gate["decision"] == "promoted" and gate["champion"] != champion:
            changed = f"the champion changed from {gate['champion']} to {champion} meanwhile: evaluate again"
            decided = gate | {"decision": "refused", "reasons": [*gate["reasons"], changed]}
        created = dict(zip(_CREATED, (number, _now().isoformat(), champion, decided), strict=True))
        card = _dump(given | created)
        published = hashlib.sha256(card).hexdigest()
        home.write(f"{number}/model.json", card)
        home.write(f"{number}/{artefacts.SUM}", artefacts.sum_of(published))
        state["versions"][str(number)] = {"source": source, "published": published}
        state["candidate"] = max(number, state.get("candidate", 0))
        if decided["decision"] == "promoted":
            _crown(state, number)
            if state.get("anchor") == decided.get("ahead_of"):  # both are None for the first champion
                state["anchor"] = number
        _note(state, "publish", number, "; ".join(decided["reasons"]))
        return number

    done = _change(home, commit)
    home.remove(f"{number}/{_CLAIM}" if done == number else str(number))
    return publish(artefact, root, gate) if done is None else _registered(root, done)


def promote(root: Location, which: str, reason: str, by: str) -> int:
    """Make a version the champion by hand, whatever its gate said. Who did so and why is kept in the history.

    The version also becomes the anchor: who answers for the champion answers for what later candidates are compared
    with.

    Args:
        root: Root of the registry.
        which: Number or alias of the version.
        reason: Reason, which stays in the history.
        by: Name of the person who answers for it.

    Returns:
        The number of the version.

    Raises:
        InputError: There is no such version, it was changed, or the reason or the name is empty.
    """
    if not reason.strip() or not by.strip():
        raise InputError("promotion by hand needs --reason and --by: they stay in the registry's history")
    home = _home(root)
    version = _number(root, _need(home), which)
    artefacts.verify(find(root, str(version)))

    def crown(state: State) -> int:
        _crown(state, _number(root, state, str(version)))
        state["anchor"] = version
        _note(state, "promote", version, reason, by)
        return version

    return _change(home, crown)


def roll_back(root: Location, reason: str, by: str, champion: int | None = None) -> int:
    """Make the previous champion the champion again.

    The version that it replaces counts as refuted: no later roll-back returns to it unless somebody promotes it by hand
    in between, and it is no longer the anchor.

    Args:
        root: Root of the registry.
        reason: Reason, which stays in the history.
        by: Name of the person who answers for it.
        champion: Version to replace. If the champion is another one by now, nothing is changed. None replaces any
            champion.

    Returns:
        The version that is the champion now.

    Raises:
        InputError: There is no previous champion, or it was changed.
    """
    home = _home(root)
    _need(home)

    def swap(state: State) -> int:
        if champion is not None and state.get("champion") != champion:
            present: int = state["champion"]
            return present
        if not (earlier := _earlier(state)):
            raise InputError(f"{root}: no previous champion to roll back to")
        refuted, version = state["champion"], earlier[0]
        state["champion"] = version
        if state["anchor"] == refuted:
            state["anchor"] = version
        artefacts.verify(find(root, str(version)))
        state.pop("previous", None)
        if earlier[1:]:
            state["previous"] = earlier[1]
        _note(state, "rollback", version, reason, by)
        return version

    return _change(home, swap)


def collect_garbage(root: Location, keep: int, delete: bool = False) -> list[int]:
    """List versions that are no longer needed: no alias names them, and they are not among the newest `keep`.

    With `delete` they are removed, together with what is left of publications that were killed more than a day ago.

    Args:
        root: Root of the registry.
        keep: Number of newest versions to keep; at least 1, because the newest number must not be assigned again.
        delete: Remove the versions.

    Returns:
        The versions that are not needed.

    Raises:
        InputError: `keep` is below 1.
    """
    if keep < 1:
        raise InputError(f"--keep {keep}: at least the newest version stays")
    home = _home(root)
    left: set[int] = set()

    def drop(state: State) -> list[int]:
        there = _versions(state)
        going = [one for one in there if one not in {*there[-keep:], *_aliases(state).values()}]
        if not delete:
            return going
        left.update(_take_over(home, state))
        left.difference_update(there)
        for version in going:
            home.write(f"{version}/{_CLAIM}", _token())  # so that the next call removes it if this one is killed
            del state["versions"][str(version)]
        if going or left:
            told = ", ".join([*map(str, going), *(f"{one} (half-written)" for one in sorted(left))])
            _note(state, "gc", max([*going, *left]), f"removed {told}")
        return going

    going = _change(home, drop)
    if delete:
        for version in (*going, *left):
            home.remove(str(version))
    return going


def read_test_set(root: Location | None, test_digest: str, model: str) -> int:
    """Note that a model's gate reads a test set, and return how many other models' gates have read it before.

    The more there were, the less a good figure on this test set means. Evaluations that are never registered count as
    well.

    Args:
        root: Root of the registry; None if there is none, so that nothing is noted.
        test_digest: Digest of the test set from `gate.test_digest`.
        model: SHA-256 of the model's file.

    Returns:
        The number of other models; 0 without a registry.
    """
    if root is None:
        return 0
    reading = {"test_digest": test_digest, "model": model}

    def add(state: State) -> int:
        if reading not in state["readings"]:
            state["readings"].append(reading)
        return len({one["model"] for one in state["readings"] if one["test_digest"] == test_digest} - {model})

    return _change(_home(root), add)


def note_deployment(root: Location, action: Literal["sent", "proven"], version: int, reason: str) -> None:
    """Note in the history that a version was sent to a cluster, or that it has proven itself there.

    Each action is noted once per version.

    Args:
        root: Root of the registry.
        action: "sent" or "proven".
        version: Number of the version.
        reason: Text for the history.
    """

    def note(state: State) -> None:
        if action not in _deployments(state, version):
            _note(state, action, version, reason, "deploy")

    _change(_home(root), note)


def is_unproven(root: Location, version: int) -> bool:
    """Return whether a version was sent to a cluster but never proved itself: its deployment failed or was killed."""
    return _deployments(_read(_home(root))[0], version) == {"sent"}


def earlier(root: Location) -> list[int]:
    """Return the earlier champions that a roll-back may return to, newest first."""
    return _earlier(_read(_home(root))[0])


def refuted(root: Location) -> dict[int, str]:
    """Return the versions that a roll-back replaced and that were not promoted since, with the roll-back's reason."""
    return _refuted(_read(_home(root))[0])


def history(root: Location) -> list[dict[str, Any]]:
    """Return every change of the aliases and every deployment, oldest first.

    Each entry has the fields id, when, action, version, by, reason and aliases.
    """
    entries: list[dict[str, Any]] = _read(_home(root))[0]["history"]
    return entries


def versions(root: Location) -> list[int]:
    """Return the published versions, oldest first."""
    return _versions(_read(_home(root))[0])


def read_aliases(root: Location) -> dict[str, int]:
    """Map each alias to its version. The result is empty for a new registry."""
    return _aliases(_read(_home(root))[0])


def find(root: Location, which: str | None = None, only: Sequence[str] = ()) -> Path:
    """Return the folder of a version or alias, after a check that its model.json is the one that was published.

    Args:
        root: Root of the registry.
        which: Number or alias; None for the champion, or for the candidate if there is no champion.
        only: Files that are needed, model.json among them. Each of them is compared with its hash, and other files of a
            bucket are not downloaded. If it is empty, the check of the other files is left to `artefacts.verify`.

    Returns:
        The folder; for a bucket, a local copy.

    Raises:
        InputError: There is no such version, or one of these files is missing or was changed.
    """
    folder = locate(root, which, only)
    check(root, folder)
    if only:
        files = artefacts.facts(folder)["files"]
        artefacts.verify_files(folder, {name: files[name] for name in only if name in files})
    return folder


def locate(root: Location, which: str | None = None, only: Sequence[str] = ()) -> Path:
    """Return the folder of a version or alias like `find`, but unchecked.

    It is meant for callers that read the folder later and call `check` then.

    Args:
        root: Root of the registry.
        which: Number or alias, as for `find`.
        only: Files that are needed, as for `find`. Of a bucket no others are downloaded.

    Returns:
        The folder; for a bucket, a local copy.

    Raises:
        InputError: There is no such version.
    """
    home = _home(root)
    return home.get(str(_number(root, _read(home)[0], which)), only)


def check(root: Location, folder: Path) -> None:
    """Check that the model.json of a folder from `locate` is one that was published.

    Args:
        root: Root of the registry.
        folder: Folder from `locate`.

    Raises:
        InputError: The file is missing or was changed.
    """
    card = folder / "model.json"
    if not card.is_file():
        raise InputError(f"{folder}: not a registered model (model.json is missing)")
    if artefacts.sha256(card) not in {one["published"] for one in _read(_home(root))[0]["versions"].values()}:
        mend = "remove this copy of the bucket's object" if storage.is_bucket(root) else "put back a copy of this file"
        raise InputError(f"{card}: changed since it was registered (sha256 differs); {mend}")


def address(root: Location, version: int) -> str:
    """Return where a version is: a path, or a gs:// address."""
    return storage.below(_home(root).address, str(version))


def _home(root: Location) -> storage.Folder | storage.Bucket:
    if not str(root):
        raise InputError("registry: give a folder, or gs://bucket/prefix")
    return storage.at(storage.below(root, NAME))


def _read(home: storage.Folder | storage.Bucket) -> tuple[State, str]:
    """Return the state and its generation.

    Raises:
        InputError: The file is damaged.
    """
    data, generation = home.read(_STATE)
    if generation == ABSENT:
        return {"versions": {}, "history": [], "readings": []}, generation
    file = storage.below(home.address, _STATE)
    try:
        state = json.loads(data)
        if missing := [field for field in _FIELDS if not isinstance(state, dict) or field not in state]:
            raise InputError(f"{file}: field {missing[0]} is missing; put back a copy of the file that has it")
        sealed = state.pop(_SEAL, None) is not None
        if sealed and data != _seal(state):
            raise InputError(f"{file}: changed since it was written (sha256 differs); put back a copy of the file")
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}") from None
    return (state if sealed else _upgrade(home, state)), generation


def _seal(state: State) -> bytes:
    """Return the state as it is written, with its hash."""
    return _dump(state | {_SEAL: hashlib.sha256(_dump(state)).hexdigest()})


def _upgrade(home: storage.Folder | storage.Bucket, state: State) -> State:
    """Upgrade the state of a registry that has no hashes of aliases.json and model.json, and no anchor.

    The result is written with the next change. A model.json counts as unchanged only if it has the hash of the one that
    was given to `publish`, once the fields that the publication added are removed.

    Raises:
        InputError: A field does not belong to such a registry, so the state is damaged.
    """
    file = storage.below(home.address, _STATE)
    unknown = sorted(state.keys() - {*_FIELDS, *_ALIASES[:3]})
    unknown += [
        number for number, version in state["versions"].items() if not number.isdigit() or "source" not in version
    ]
    if unknown:
        raise InputError(f"{file}: field {unknown[0]} is unknown; put back a copy of the file")
    for number, version in state["versions"].items():
        card, version["published"] = home.read(f"{number}/model.json")[0], ""
        with contextlib.suppress(ValueError):
            given = {name: value for name, value in json.loads(card).items() if name not in _CREATED}
            if hashlib.sha256(_dump(given)).hexdigest() == version["source"]:
                version["published"] = hashlib.sha256(card).hexdigest()
    return state | ({"anchor": state["champion"]} if "champion" in state else {})


def _need(home: storage.Folder | storage.Bucket) -> State:
    """Return the state of a registry that must exist."""
    state, generation = _read(home)
    if generation == ABSENT:
        raise InputError(f"{home.address.removesuffix(f'/{NAME}')}: no registry here; `make run` makes one")
    return state


def _change(home: storage.Folder | storage.Bucket, decide: Callable[[State], T]) -> T:
    """Replace the state by what `decide` makes of it. If another process was faster, `decide` is called again.

    Returns:
        What `decide` returned when its change was written, or when it changed nothing.
    """
    tried: dict[str, T] = {}
    while True:
        state, generation = _read(home)
        for line in state["history"]:
            if line["id"] in tried:  # the change was written, the answer got lost, and another change followed since
                return tried[line["id"]]
        before = copy.deepcopy(state)
        result = decide(state)
        if state == before:
            return result
        tried |= {line["id"]: result for line in state["history"][len(before["history"]) :]}
        try:
            home.write(_STATE, _seal(state), generation)
        except ChangedError:
            time.sleep(random.uniform(0, _PAUSE))
        else:
            return result


def _claim(home: storage.Folder | storage.Bucket) -> tuple[int, bytes]:
    """Claim a number that nobody else has or had, and return it with the content of its claim."""
    number, claim = max([*_used(home), *_folders(home)], default=0) + 1, _token()
    while True:
        try:
            home.write(f"{number}/{_CLAIM}", claim, ABSENT)
        except ChangedError:
            number += 1
            continue
        if number not in _used(home):
            return number, claim
        home.remove(f"{number}/{_CLAIM}")  # somebody claimed and published it, and removed the claim, since we looked
        number += 1


def _used(home: storage.Folder | storage.Bucket) -> set[int]:
    """Return the numbers that are or were published, and those of leftovers that were removed."""
    state = _read(home)[0]
    return {*_versions(state), *(line["version"] for line in state["history"])}


def _take_over(home: storage.Folder | storage.Bucket, state: State) -> list[int]:
    """Take over the claims of killed publications and return their numbers; remove claims of published versions."""
    taken = []
    for number in _folders(home):
        claim, generation = home.read(f"{number}/{_CLAIM}")
        if not claim:
            continue
        if str(number) in state["versions"]:
            home.remove(f"{number}/{_CLAIM}")
        elif _now() - _claimed(home, number, claim) > _STALE:
            try:
                home.write(f"{number}/{_CLAIM}", _token(), generation)
            except ChangedError:
                continue
            taken.append(number)
    return taken


def _claimed(home: storage.Folder | storage.Bucket, number: int, claim: bytes) -> datetime.datetime:
    """Return when a claim was made.

    Raises:
        InputError: The claim is damaged.
    """
    try:
        when, _, _ = claim.decode().partition(" ")
        return datetime.datetime.fromisoformat(when).astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        file = storage.below(home.address, str(number), _CLAIM)
        raise InputError(f"{file}: damaged; remove it if no publication is running") from None


def _folders(home: storage.Folder | storage.Bucket) -> list[int]:
    """Return the numbers that have a folder, published or not."""
    return [int(name) for name in home.children() if name.isdigit()]


def _token() -> bytes:
    return f"{_now().isoformat()} {uuid.uuid4().hex}".encode()


def _published(state: State, source: str) -> int | None:
    """Return the version that an artefact was published as; None if it was not."""
    return next((int(n) for n, version in state["versions"].items() if version["source"] == source), None)


def _registered(root: Location, version: int) -> Registered:
    told = artefacts.facts(find(root, str(version), artefacts.CARD), ("gate",))
    return Registered(NAME, version, address(root, version), told["files"][artefacts.MODEL], told["gate"])


def _versions(state: State) -> list[int]:
    return sorted(map(int, state["versions"]))


def _aliases(state: State) -> dict[str, int]:
    return {alias: state[alias] for alias in _ALIASES if alias in state}


def _number(root: Location, state: State, which: str | None) -> int:
    """Return the number of a version or alias, as `find` takes it."""
    aliases = _aliases(state)
    number = str(aliases.get("champion", aliases.get("candidate")) if which is None else aliases.get(which, which))
    if number not in state["versions"]:
        raise InputError(
            f"{root}: no registered model{'' if which is None else ' ' + repr(which)}; `make run` registers one"
        )
    return int(number)


def _earlier(state: State) -> list[int]:
    """Return former champions that are still published and not refuted, without the present one (see `earlier`)."""
    crowned = dict.fromkeys(line["aliases"].get("champion") for line in reversed(state["history"]))
    gone = {None, state.get("champion"), *_refuted(state)}
    return [one for one in crowned if one not in gone and str(one) in state["versions"]]


def _refuted(state: State) -> dict[int, str]:
    """Return refuted versions and reasons (see `refuted`). The present champion is never refuted."""
    gone: dict[int, str] = {}
    champion: Any = None
    for line in state["history"]:
        if line["action"] == "rollback":
            gone[champion] = line["reason"]
        champion = line["aliases"].get("champion")
        gone.pop(champion, None)
    return gone


def _deployments(state: State, version: int) -> set[str]:
    """Return the actions that `note_deployment` has noted for a version."""
    return {line["action"] for line in state["history"] if line["version"] == version} & {"sent", "proven"}


def _crown(state: State, version: int) -> None:
    """Make a version the champion."""
    if "champion" in state and state["champion"] != version:
        state["previous"] = state["champion"]
    state["champion"] = version


def _note(state: State, action: str, version: int, reason: str, by: str = "pipeline") -> None:
    """Add a line to the history. Its id shows later whether a change was written although the answer got lost."""
    line = {"id": uuid.uuid4().hex, "when": _now().isoformat(), "action": action, "version": version}
    state["history"].append(line | {"by": by, "reason": reason, "aliases": _aliases(state)})


def _dump(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise InputError("this user has no name here; say who answers for it with --by") from None


def _list(root: Location) -> None:
    names: dict[int, list[str]] = {}
    for alias, version in read_aliases(root).items():
        names.setdefault(version, []).append(alias)
    print(f"{'version':<9}{'created':<27}{'backbone':<16}{'domain':<9}{'test AUROC':<24}{'gate':<10}aliases")
    for version in versions(root):
        try:
            one = _described(root, str(version))
        except InputError as error:
            print(f"{version:<9}damaged: {error}")
            continue
        auroc = one["forms"]["keras"]["test"][one["serving_domain"]]["auroc"]
        shown = f"{auroc['value']:.3f}" + (
            "" if auroc["low"] is None else f" [{auroc['low']:.3f}, {auroc['high']:.3f}]"
        )
        print(
            f"{version:<9}{one['created']:<27}{one['backbone']:<16}{one['serving_domain']:<9}{shown:<24}"
            f"{one['gate']['decision']:<10}{', '.join(names.get(version, []))}"
        )


def _described(root: Location, which: str) -> dict[str, Any]:
    """Return the facts that the commands show. Other files of a bucket are not checked, to avoid downloads."""
    if storage.is_bucket(root):
        return artefacts.facts(find(root, which, artefacts.CARD), _SHOWN)
    return artefacts.verify(find(root, which), _SHOWN)


def _show(root: Location, which: str) -> None:
    one = _described(root, which)
    auroc = one["forms"]["keras"]["test"][one["serving_domain"]]["auroc"]
    print(f"version {one['version']} of {one['created']}: {address(root, one['version'])}")
    print(f"{one['backbone']} on {one['domain']} images, {one['image_size']} px, code {one['code_version']}")
    print(f"data {one['data_digest'][:12]}, parent {one['parent'] or 'none'}")
    print(f"test AUROC {auroc['value']:.3f}, threshold {one['threshold']:.4f}, temperature {one['temperature']:.3f}")
    print(f"gate: {one['gate']['decision']}")
    for reason in one["gate"]["reasons"]:
        print(f"  {reason}")
    for criterion in one["gate"].get("criteria", []):
        word = "holds" if criterion["passed"] else "waived" if criterion["waived"] else "FAILS"
        print(f"  {word:<7}{criterion['name']}: {criterion['found']} (asked: {criterion['asked']})")
    for line in history(root):
        if line["version"] == one["version"]:
            print(f"{line['when']} {line['action']} by {line['by']}: {line['reason']}")


@errors.command
def main(argv: Sequence[str] | None = None) -> None:
    """Run a command of the registry."""
    parser = argparse.ArgumentParser(prog="python -m thyroid.registry", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--registry", required=True, help="root of the registry: a folder, or gs://bucket/prefix")
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
