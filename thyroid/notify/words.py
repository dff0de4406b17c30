"""What is said about each event, in one sentence, and which news repeats what was told.

Messages leave the hospital's network, so a sentence is made of fixed words, numbers and names that this project gives.
It never quotes an error, a file, an address of scans or a value of somebody's table: these can hold a patient's number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from thyroid.notify.notification import Event
from thyroid.records.gate import Criterion, GateRecord, ShadowRecord
from thyroid.records.watch import WatchRecord

_MEASURED = (
    "size of the test set",
    "AUROC",
    "macro AUROC",
    "validation patients behind the threshold",
    "sensitivity",
    "specificity",
    "calibration",
)
"""Criteria of the gate whose findings are figures alone."""
_COMPARED, _AS_SPECIFIC = "not inferior to ", "as specific as "
"""How the names of criteria begin that compare a model with the champion or the anchor."""


@dataclass(frozen=True)
class News:
    """Something that happened.

    Attributes:
        event: What happened.
        topic: What it is about, such as a run or the watch of a version, within one registry.
        sentence: What happened, for people.
        link: Address of what shows more; empty for none.
        run: Id of the run; empty for the present one, if any.
        version: Number of the version; None for none.
        reassures: Whether it only says that something is well again. It is told only if the contrary was told.
    """

    event: Event
    topic: str
    sentence: str
    link: str = ""
    run: str = ""
    version: int | None = None
    reassures: bool = False

    @property
    def state(self) -> str:
        """The state of the topic. News in the state that was told last is no news."""
        # the last step of a run without a training only sees that it succeeded
        return "run.succeeded" if self.event == "run.unchanged" else self.event

    def is_news_after(self, told: str | None) -> bool:
        """Return whether a receiver should be told.

        Args:
            told: The state of the topic that it was told last; None for none.
        """
        return told != self.state and not (self.reassures and told is None)


def run_started(run: str, scans: int, link: str = "") -> News:
    """Return the news that a run was started because scans or tables arrived.

    Args:
        run: Id of the run.
        scans: Number of scans that arrived; 0 if only tables did.
        link: Address of the run's page; empty for none.
    """
    many = "1 new or changed scan" if scans == 1 else f"{scans} new or changed scans" if scans else "changed tables"
    return News("run.started", f"start of run {run}", f"A run was started for {many}.", link, run)


def run_unchanged(run: str) -> News:
    """Return the news that a run ended without a training.

    Args:
        run: Id of the run.
    """
    return News("run.unchanged", f"run {run}", "The run ended without a training: too little is new.", run=run)


def run_ended(run: str, event: Event, *, step: str, hints: Sequence[str], champion: int | None, link: str) -> News:
    """Return the news of how a run ended.

    Args:
        run: Id of the run.
        event: run.succeeded, run.failed or run.cancelled.
        step: Name of the step that failed; empty if it is not known.
        hints: What to do about the failure, in fixed words.
        champion: The champion; None if there is none, or if the registry cannot be read.
        link: Address of what shows more; empty for none.
    """
    at = f" at {step}" if step else ""
    sentence = {
        "run.succeeded": "The run succeeded.",
        "run.cancelled": "The run was cancelled.",
    }.get(event, f"The run failed{at}.")
    sentence = " ".join([sentence, *hints])
    if champion is not None:
        sentence += f" The champion is version {champion}."
    return News(event, f"run {run}", sentence, link, run)


def gate(version: int, sha256: str, decision: GateRecord, *, backbone: str, link: str) -> News:
    """Return the news of what the champion gate decided.

    Args:
        version: Number of the version.
        sha256: SHA-256 of the model, which tells registries apart that have the same version.
        decision: The decision as it was carried out.
        backbone: The model's backbone.
        link: Address of the report.
    """
    topic, who = f"gate of version {version} {sha256[:16]}", f"Version {version} ({backbone})"
    failed = [one for one in decision.criteria if not (one.passed or one.waived)]
    if decision.decision == "promoted":
        auroc = next((f" AUROC on the test set: {one.found}." for one in decision.criteria if one.name == "AUROC"), "")
        waived = f" {_criteria(len(decision.waived))} waived by name." if decision.waived else ""
        sentence = f"{who} was released and is the champion.{auroc}{waived}"
        return News("gate.released", topic, sentence, link, version=version)
    if decision.shadow is not None and decision.decision == "waiting":
        sentence = (
            f"{who} holds every criterion and waits: {decision.shadow.pictures:,} live pictures behind version "
            f"{decision.champion} decide."
        )
        return News("gate.waiting", topic, sentence, link, version=version)
    if failed:
        more = f" {len(failed) - 1} more {'criterion' if len(failed) == 2 else 'criteria'} failed." * (len(failed) > 1)
        sentence = f"{who} was not released: {_why(failed[0], decision)}.{more}"
    else:
        sentence = f"{who} was not released: {decision.reasons[-1]}."  # of `State.carry_out`
    return News("gate.refused", topic, sentence, link, version=version)


def settled(record: ShadowRecord, link: str) -> News | None:
    """Return the news of what the gate decided on live pictures; None if it has not.

    Args:
        record: What a candidate made of them.
        link: Address of the candidate.
    """
    version, decision = record.candidate, record.decision
    if decision is None:
        return None
    topic = f"live pictures of version {version} {record.model[:16]}"
    if decision.decision == "accepted":
        sentence = f"Version {version} was released and is the champion. {record.summary}"
        return News("gate.released", topic, sentence, link, version=version)
    sentence = f"Version {version} was not released: {'; '.join(decision.reasons[1:])}."
    return News("gate.refused", topic, sentence, link, version=version)


def watched(record: WatchRecord, link: str) -> News | None:
    """Return the news of a watch; None if nothing could be compared, which says nothing.

    Args:
        record: Content of watch.json.
        link: Address of the version.
    """
    version, verdict = record.model.version, record.verdict
    topic = f"watch of version {version} {record.model.sha256[:16]}"
    if verdict == "drift" or verdict == "worse":
        event: Event = "watch.drift" if verdict == "drift" else "watch.worse"
        return News(event, topic, f"Watch of version {version}: {record.summary}", link, version=version)
    if verdict == "steady":
        sentence = f"Watch of version {version}: no change is seen any more."
        return News("watch.steady", topic, sentence, link, version=version, reassures=True)
    return None


def watch_complete(version: int, sha256: str, failed: int, link: str) -> News:
    """Return the news of whether a watch could do all that was asked for.

    Args:
        version: Number of the version.
        sha256: SHA-256 of the version's model.json.
        failed: Number of parts that failed.
        link: Address of the version.
    """
    topic = f"parts of the watch of version {version} {sha256[:16]}"
    if failed:
        parts = "1 part" if failed == 1 else f"{failed} parts"
        sentence = f"The watch of version {version} failed in {parts}; its log gives the reason."
        return News("watch.failed", topic, sentence, link, version=version)
    sentence = f"The watch of version {version} is complete again."
    return News("watch.complete", topic, sentence, link, version=version, reassures=True)


def deployed(version: int, sha256: str, *, taken_back: bool, champion: int | None, link: str) -> News:
    """Return the news that a deployment was taken back, or that its version is served after all.

    Args:
        version: Number of the version that was deployed.
        sha256: SHA-256 of the version's model, as for `gate`.
        taken_back: Whether the deployment was taken back.
        champion: The champion now; None if there is none.
        link: Address of the version.
    """
    topic = f"deployment of version {version} {sha256[:16]}"
    if taken_back:
        now = "There is no champion." if champion is None else f"The champion is version {champion}."
        if champion == version:
            now = f"Version {version} is still the champion in the registry, but it is not served."
        sentence = f"The deployment of version {version} failed and was taken back. {now}"
        return News("deployment.taken_back", topic, sentence, link, version=version)
    sentence = f"Version {version} is served after all."
    return News("deployment.served", topic, sentence, link, version=version, reassures=True)


def _why(criterion: Criterion, decision: GateRecord) -> str:
    """Return why a criterion failed; of those that may name files or groups of patients, only the name."""
    name = criterion.name
    if name in _MEASURED or name.startswith(_AS_SPECIFIC):
        return f"{name}: {criterion.found}; required: {criterion.asked}"
    if name.startswith(_COMPARED):
        role = name.removeprefix(_COMPARED)
        found = decision.comparison if role.startswith("champion") else decision.anchor_comparison
        if found is None:
            return f"it could not be compared with {role}"
        return f"its AUROC minus that of {role} is {found.difference}; required: {criterion.asked}"
    return f"the criterion {name} failed, and the report says why"


def _criteria(number: int) -> str:
    return "1 criterion was" if number == 1 else f"{number} criteria were"
