"""The newest comparison of a candidate with the champion: shadow.json in the candidate's folder of the registry.

It is written after the version was published, so model.json has no hash of it, and the version stays valid.
"""

import json
import random
import time

from thyroid import errors, storage
from thyroid.errors import InputError
from thyroid.model.artefact import CARD, Artefact, sha256
from thyroid.records.gate import GateRecord, ShadowDecision, ShadowRecord
from thyroid.registry.aliases import AliasesFile, State, dump
from thyroid.registry.registry import BESIDE, MODEL_NAME, Registry
from thyroid.storage import ABSENT, ChangedError

FILE = BESIDE[2]

_PAUSE = 0.2  # maximum seconds before a comparison is written again because another process was faster


def record(registry: Registry, found: ShadowRecord) -> bool:
    """Keep a comparison beside its candidate, unless a later one, or one that the gate has decided on, is there.

    A damaged file is replaced.

    Args:
        registry: Registry of the candidate.
        found: The comparison.

    Returns:
        Whether it was kept.

    Raises:
        InputError: There is no such version, the comparison is of another model, or the registry cannot be written.
    """
    version = found.candidate
    if sha256(registry.find(str(version), CARD) / CARD[0]) != found.model:
        raise InputError(f"version {version} of {registry.root} is not the model that was compared; watch it again")
    home = _home(registry)
    while True:
        data, generation = home.read(f"{version}/{FILE}")
        try:
            present = _parse(data, FILE) if generation != ABSENT else None
        except InputError:
            present = None
        if present is not None and (present.decision is not None or present.created > found.created):
            return False
        try:
            home.write(f"{version}/{FILE}", dump(found.to_dict()), generation)
        except ChangedError:
            time.sleep(random.uniform(0, _PAUSE))
            continue
        if version not in registry.versions():  # its removal may have come before this file
            home.remove(str(version))
            raise InputError(f"{registry.root}: version {version} was removed in the meantime; nothing is kept of it")
        return True


def carry_out(registry: Registry, version: int, gate: GateRecord, decision: ShadowDecision) -> None:
    """Release a version that waits for live pictures, or end its wait, as they decided.

    Nothing changes if it does not wait any more: it was done before, or somebody has changed the champion since.

    Args:
        registry: Registry of the version.
        version: Number of the version.
        gate: Its gate.
        decision: What live pictures decided. Its reasons stay in the history.

    Raises:
        InputError: The version was changed.
    """
    accepted = decision.decision == "accepted"
    if accepted:
        Artefact.verify(registry.find(str(version)))

    def change(state: State) -> None:
        if state.content.get("waiting") != version:
            return
        if accepted:
            state.release(version, gate)
        else:
            del state.content["waiting"]
        state.note("release" if accepted else "refuse", version, "; ".join(decision.reasons))

    AliasesFile(_home(registry)).change(change)


def last(registry: Registry, version: int) -> ShadowRecord | None:
    """Return the newest comparison of a version; None if it never answered behind a champion.

    Raises:
        InputError: shadow.json is damaged.
    """
    data, generation = _home(registry).read(f"{version}/{FILE}")
    return None if generation == ABSENT else _parse(data, storage.below(registry.address(version), FILE))


def _home(registry: Registry) -> storage.Folder | storage.Bucket:
    return storage.at(storage.below(registry.root, MODEL_NAME))


def _parse(data: bytes, place: str) -> ShadowRecord:
    try:
        return ShadowRecord.parse(json.loads(data), place, "ignore")
    except (ValueError, RecursionError, InputError) as error:
        reason = errors.one_line(error).removeprefix(f"{place}: ")[:200]
        raise InputError(f"{place}: damaged: {reason}; run python -m thyroid.watch again, which replaces it") from None
