"""Write what a search found: settings.json for the training, study.json for machines, report.html for people.

The best of many trials looks better than it is, because it was chosen by the AUROC that is then shown. For this reason
the report also shows a corrected AUROC. For it, the choice is repeated on bootstrap samples of patients and judged on
the patients that these left out (BBC-CV: Tsamardinos, Greasidou & Borboudakis 2018, 10.1007/s10994-018-5714-4). The
correction errs on the side of caution.
"""

import datetime
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as pictures

from thyroid import RESEARCH_USE_ONLY, atomic, metrics, plot_style, rendering, storage
from thyroid.data import tables
from thyroid.errors import InputError
from thyroid.imaging import images
from thyroid.records.settings import Settings
from thyroid.sweep import plans, studies
from thyroid.sweep.plans import HEADS, IMAGES, Plan

log = logging.getLogger(__name__)

SHOWN = 10
"""Number of best trials in the report's table."""
CHOICE_DRAWS = 500

_PICTURES: Mapping[str, tuple[str, Callable[..., Any]]] = {
    "history": ("Every trial and the best so far", pictures.plot_optimization_history),
    "importance": ("How much each setting mattered (PED-ANOVA)", pictures.plot_param_importances),
    "slice": ("AUROC by setting", pictures.plot_slice),
}


@dataclass(frozen=True)
class Found:
    """The folder of the results, and the content of study.json."""

    folder: Path
    facts: dict[str, Any]


def conclude(study: storage.Location, output: Path) -> Found:
    """Write the results of a study from the trials that are finished.

    Args:
        study: Folder of the study, or its address in a bucket.
        output: Folder for settings.json, study.json and report.html.

    Returns:
        The folder of the results, and the content of study.json.

    Raises:
        InputError: No trial is finished.
    """
    plan = plans.read(study)
    stages = {stage: plan.shared(stage) for stage in (HEADS, IMAGES)}
    judged = {
        stage: _stage(plan, stage, shared) for stage, shared in stages.items() if shared.trials(TrialState.COMPLETE)
    }
    if not judged:
        raise InputError(f"{plan.address}: no trial is finished")
    last = list(judged)[-1]
    chosen = judged[last]
    facts = {
        "plan": plan.facts,
        "stages": judged,
        "chosen": {"stage": last} | chosen["best"],
        "default": chosen["default"],
        "difference": chosen["difference"],
        "corrected": chosen["corrected"],
        "helped": _helped(chosen, list(judged.values())),
        "trials": [_row(stage, trial) for stage, shared in stages.items() for trial in shared.trials()],
    }
    output.mkdir(parents=True, exist_ok=True)
    Settings(**chosen["best"]["settings"]).write(
        output / "settings.json",
        study=plan.folder.name,
        data_digest=plan.facts["data_digest"],
        domain=plan.facts["domain"],
        weights=plan.facts["weights"],
        trial=f"{last} {chosen['best']['number']}",
        auroc=chosen["best"]["auroc"],
        default_auroc=chosen["default"]["auroc"],
        difference=chosen["difference"],
        corrected=chosen["corrected"],
    )
    atomic.write_json(output / "study.json", facts)
    _write_report(output / "report.html", facts, {s: _drawn(stages[s]) for s in judged})
    log.info(
        f"{plan.facts['backbone']} on {plan.facts['domain']}: AUROC out of fold "
        f"{_format(chosen['best']['auroc'])} with the settings found, "
        f"{_format(chosen['default']['auroc'])} with the default ones. {facts['helped']}"
    )
    return Found(output, facts)


def _stage(plan: Plan, stage: str, shared: studies.Shared) -> dict[str, Any]:
    """Compare the default settings with the best trial of a stage, on the same images and draws."""
    trials = {trial.number: trial for trial in shared.trials(TrialState.COMPLETE)}
    scores = {number: plan.scores(stage, number) for number in trials}
    draws = metrics.Draws(plan.table["patient"], seed=plan.facts["seed"])
    default = next((n for n, trial in trials.items() if studies.FIRST in trial.user_attrs), min(trials))
    best = max(trials, key=lambda number: (trials[number].value, -number))
    drawn = {number: plan.auroc(scores[number], draws) for number in {default, best}}
    counted = [trial.state for trial in shared.trials()]

    def describe(number: int) -> dict[str, Any]:
        settings = plan.settings(stage, trials[number].params).to_dict()
        return {"number": number, "settings": settings, "auroc": asdict(metrics.interval(drawn[number]))}

    return {
        "finished": counted.count(TrialState.COMPLETE),
        "pruned": counted.count(TrialState.PRUNED),
        "failed": counted.count(TrialState.FAIL),
        "default": describe(default),
        "best": describe(best),
        "difference": asdict(metrics.interval(drawn[best] - drawn[default])),
        "corrected": corrected(plan, list(scores.values()), list(scores).index(default)),
    }


def corrected(plan: Plan, scores: Sequence[NDArray[np.float64]], default: int) -> dict[str, Any] | None:
    """Estimate the best trial's lead with the choice made on other patients than the judgement.

    Args:
        plan: Plan of the study.
        scores: Out-of-fold probabilities [n, classes] of every completed trial.
        default: Index of the default settings in `scores`.

    Returns:
        auroc of the chosen trials, and difference to the default settings, both on patients that did not take part in
        the choice. None if there is only one trial, or if no bootstrap sample allows an AUROC on both sides.
    """
    if len(scores) < 2:
        return None
    choosing = metrics.Draws(plan.table["patient"], CHOICE_DRAWS, plan.facts["seed"] + 1)
    judging = metrics.Draws(plan.table["patient"], 0)
    judging.counts = (choosing.counts == 0).astype(float)
    with np.errstate(invalid="ignore"):
        seen, unseen = (np.array([plan.auroc(score, draws)[1:] for score in scores]) for draws in (choosing, judging))
    whole = np.isfinite(seen).all(axis=0) & np.isfinite(unseen).all(axis=0)
    if not whole.any():
        return None
    seen, unseen = seen[:, whole], unseen[:, whole]
    choice = np.take_along_axis(unseen, seen.argmax(axis=0)[None], axis=0)[0]

    def spread(values: NDArray[np.float64]) -> dict[str, Any]:
        return asdict(metrics.interval(np.append(values.mean(), values)))

    return {"auroc": spread(choice), "difference": spread(choice - unseen[default])}


def _helped(chosen: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> str:
    """Describe in words whether the search helped.

    The second stage starts from heads that the first stage chose on the same patients, and its own correction does not
    see that choice. For this reason the stage with the smaller remaining lead decides.
    """
    if chosen["best"]["number"] == chosen["default"]["number"]:
        return "No trial was better than the default settings."
    corrected_leads = [stage["corrected"]["difference"] for stage in stages if stage["corrected"]]
    lead = min(corrected_leads, key=_lower_end, default=chosen["difference"])
    text = f"Of {chosen['finished']} completed trials, the best is {_format(chosen['difference'])} above the default"
    if corrected_leads:
        text += f"; {_format(lead)} remains when the choice is made on other patients"
    if len(corrected_leads) > 1:
        text += ", in the stage where less remains"
    if lead["low"] is not None and lead["low"] > 0:
        return f"{text}. The search helped."
    return f"{text}. This interval includes 0, so the search is not shown to help."


def _format(fields: Mapping[str, Any]) -> str:
    """Return an interval of study.json as text."""
    return str(metrics.Interval(**fields))


def _lower_end(interval: Mapping[str, Any]) -> float:
    """Return the lower end of an interval, or -1, the least possible difference, if it has none."""
    return -1.0 if interval["low"] is None else float(interval["low"])


def _row(stage: str, trial: FrozenTrial) -> dict[str, Any]:
    seconds = trial.duration.total_seconds() if trial.duration else None
    return {
        "stage": stage,
        "number": trial.number,
        "state": trial.state.name.lower(),
        "parameters": trial.params,
        "auroc": trial.value if trial.state == TrialState.COMPLETE else None,
        "default": studies.FIRST in trial.user_attrs,
        "again": trial.user_attrs.get(studies.AGAIN),
        "seconds": seconds,
    }


def _drawn(shared: studies.Shared) -> dict[str, str]:
    """Return Optuna's pictures of a stage as data URIs, without those that cannot be drawn of so few trials."""
    drawn = {}
    with plt.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the functions are experimental, and they warn about few trials
        for name, (title, draw) in _PICTURES.items():
            try:
                axes = np.ravel(draw(shared.study, target_name="AUROC out of fold"))
            except (ValueError, RuntimeError, ZeroDivisionError) as error:
                log.info(f"{shared.name}: no picture of {name}: {error}")
                plt.close("all")
                continue
            figure = axes[0].figure
            figure.suptitle(title, fontsize=11)
            for axis in axes:
                for side in ("left", "center"):
                    axis.set_title("", loc=side)
            content = BytesIO()
            plot_style.save(figure, content)  # type: ignore[arg-type]
            drawn[name] = images.data_uri(content.getvalue())
    return drawn


def _write_report(path: Path, facts: Mapping[str, Any], drawn: Mapping[str, Mapping[str, str]]) -> None:
    environment = rendering.environment("thyroid.sweep")
    environment.filters["interval"] = _format
    rows = {
        stage: sorted(
            (trial for trial in facts["trials"] if trial["stage"] == stage and trial["auroc"] is not None),
            key=lambda trial: -trial["auroc"],
        )[:SHOWN]
        for stage in facts["stages"]
    }
    html = environment.get_template("sweep.html").render(
        notice=RESEARCH_USE_ONLY,
        date=datetime.date.today().isoformat(),
        facts=facts,
        plan=facts["plan"],
        domain=tables.DOMAIN_NAMES[facts["plan"]["domain"]],
        best=facts["chosen"],
        rows=rows,
        pictures=drawn,
        titles={name: title for name, (title, _) in _PICTURES.items()},
        usual=Settings().to_dict(),
    )
    path.write_text(html, encoding="utf-8")
