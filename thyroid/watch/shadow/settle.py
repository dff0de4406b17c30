"""Let the gate decide on a candidate once enough live pictures are known, and keep the comparison beside it."""

from thyroid.errors import InputError
from thyroid.evaluate.shadow import gate
from thyroid.model.artefact import Artefact
from thyroid.records.gate import ShadowDecision, ShadowRecord
from thyroid.registry.registry import Registry
from thyroid.registry.shadow import kept


def settle(registry: Registry, candidate: Artefact, found: ShadowRecord) -> ShadowRecord:
    """Keep a comparison, and release the candidate if its gate waited for these pictures and accepts them.

    The gate decides once. A watch that was killed before it carried the decision out does so the next time, unless
    somebody has rolled the version back since.

    Args:
        registry: Registry of the candidate.
        candidate: The candidate's artefact, as the registry has it.
        found: What it made of the champion's pictures.

    Returns:
        The comparison with the decision, if there is one.

    Raises:
        InputError: The champion changed meanwhile, or the registry cannot be written.
    """
    version, decided = found.candidate, candidate.publication.gate
    if decided.decision == gate.WAITING and registry.champion() == found.champion:
        found = found.model_copy(update={"decision": _before(registry, version) or gate.decide(decided, found)})
    kept.record(registry, found)
    if found.decision is not None and found.decision.decision == "accepted" and version not in registry.refuted():
        kept.release(registry, version, decided, "; ".join(found.decision.reasons))
    return found


def _before(registry: Registry, version: int) -> ShadowDecision | None:
    """Return what the gate decided before; None if it has not, or if the file that says so is damaged."""
    try:
        before = kept.last(registry, version)
    except InputError:  # the file is replaced
        return None
    return None if before is None else before.decision
