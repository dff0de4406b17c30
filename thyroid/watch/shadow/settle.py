"""Let the gate decide on a candidate once enough live pictures are known, and keep the comparison beside it."""

from thyroid.errors import InputError
from thyroid.evaluate.shadow import gate
from thyroid.model.artefact import Artefact
from thyroid.records.gate import ShadowDecision, ShadowRecord
from thyroid.registry.beside import shadows
from thyroid.registry.hub import hub
from thyroid.registry.registry import Registry


def settle(registry: Registry, candidate: Artefact, found: ShadowRecord) -> ShadowRecord:
    """Keep a comparison, and release the candidate if its gate waits for these pictures and accepts them.

    The gate decides once: what another watch has decided in the meantime holds. A watch that was killed before it
    carried the decision out does so the next time, unless somebody has changed the champion since.

    Args:
        registry: Registry of the candidate.
        candidate: The candidate's artefact, as the registry has it.
        found: What it made of the champion's pictures.

    Returns:
        The comparison with the decision, if there is one that holds: nobody has replaced a version that was accepted.

    Raises:
        InputError: The candidate was changed, or the registry cannot be written.
    """
    version, decided = found.candidate, candidate.publication.gate
    waits = registry.read_aliases().get("waiting") == version
    decision = _before(registry, version)
    if decision is None and waits:
        decision = gate.decide(decided, found)
    found = found.model_copy(update={"decision": decision})
    if not shadows.record(registry, found):
        found = found.model_copy(update={"decision": _before(registry, version)})
    if waits and found.decision is not None:
        shadows.carry_out(registry, version, decided, found.decision)
        hub.update(registry)
    if found.decision is not None and found.decision.decision == "accepted" and registry.champion() != version:
        return found.model_copy(update={"decision": None})
    return found


def _before(registry: Registry, version: int) -> ShadowDecision | None:
    """Return what the gate decided before; None if it has not, or if the file that says so is damaged."""
    try:
        before = shadows.last(registry, version)
    except InputError:  # the file is replaced
        return None
    return None if before is None else before.decision
