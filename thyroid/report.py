"""report.html: one file that opens without a network, for people."""

import base64
import datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from thyroid import RESEARCH_USE_ONLY, metrics
from thyroid.names import CLASSES

CHOSEN_BY = {"validation": "validation", "cross_validation": "cross-validated"}
"""Which AUROC compares models, in words."""

_TEMPLATE = "report.html"


def write(output: Path, data: Path, facts: dict[str, Any], result: dict[str, Any]) -> None:
    """Render report.html into `output`.

    Args:
        output: folder of the evaluation, with its plots/.
        data: data version of `crop`, for its pictures and quarantine list.
        facts: of the data version.
        result: of the evaluation.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("thyroid"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"interval": _interval, "percent": lambda share: f"{share:.1%}"}
    best, domain = result["models"][0], result["serving_domain"]
    html = environment.get_template(_TEMPLATE).render(
        notice=RESEARCH_USE_ONLY,
        date=datetime.date.today().isoformat(),
        facts=facts,
        result=result,
        best=best,
        best_test=best["test"][domain],
        domain=domain,
        chosen_by=CHOSEN_BY[result["ranked_by"]],
        classes=CLASSES,
        quarantine=pd.read_csv(data / "quarantine.csv").to_dict("records"),
        draws=metrics.DRAWS,
        pictures={path.stem: _embedded(path) for path in (output / "plots").glob("*.png")}
        | {name: _embedded(data / f"{name}.png") for name in ("statistics", "crops")},
    )
    (output / "report.html").write_text(html, encoding="utf-8")


def _interval(figure: dict[str, Any]) -> str:
    return str(metrics.Interval.of(figure))


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
