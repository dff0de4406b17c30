"""The newest comparison of a candidate with the champion: shadow.json in the candidate's folder of the registry."""

from thyroid.model.artefact import Artefact
from thyroid.records.gate import GateRecord, ShadowDecision, ShadowRecord
from thyroid.registry.aliases import AliasesFile, State
from thyroid.registry.beside.file import FileBeside, at
from thyroid.registry.registry import BESIDE, Registry

_FILE = FileBeside(
    BESIDE[2],
    ShadowRecord,
    "compared",
    lambda present, found: present.decision is not None or present.created > found.created,
)


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
    return _FILE.record(registry, found.candidate, found.model, found)


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

    AliasesFile(at(registry)).change(change)


def last(registry: Registry, version: int) -> ShadowRecord | None:
    """Return the newest comparison of a version; None if it never answered behind a champion.

    Raises:
        InputError: shadow.json is damaged.
    """
    return _FILE.last(registry, version)
