"""Render the report of several sites together: one page for a clinician, and the detail after it."""

from pathlib import Path

from thyroid import rendering
from thyroid.imaging import images
from thyroid.interval import Interval
from thyroid.records.share import PooledFigure, PoolRecord
from thyroid.validate.share import plots
from thyroid.validate.share.figures import FIGURES

CASES = {"exact": "", "worst": "at worst", "best": "at best"}
"""Cases of withheld counts, in words."""

_WORDS = {
    "sensitivity": ("malignant patients", "are called malignant"),
    "specificity": ("benign patients", "are called benign"),
}


def write(output: Path, record: PoolRecord) -> None:
    """Write forest.png and report.html into `output`.

    Args:
        output: Folder to write to.
        record: What was pooled.
    """
    picture = output / "forest.png"
    plots.forest(record.sites, record.figures, picture)
    environment = rendering.environment("thyroid.validate")
    environment.filters |= {"pair": _pair, "joined": _joined, "percent": lambda share: f"{share:.0%}"}
    html = environment.get_template("pool.html").render(
        record=record,
        notice=record.notice,
        names=FIGURES,
        cases=CASES,
        lead=_lead(record),
        forest=images.data_uri(picture.read_bytes()),
        outliers={name: _outliers(figure) for name, figure in record.figures.items()},
    )
    (output / "report.html").write_text(html, encoding="utf-8")


def _lead(record: PoolRecord) -> list[str]:
    """Return the result in a few sentences."""
    counts = [sum(getattr(site, side) or 0 for site in record.sites) for side in ("malignant", "benign")]
    sites = "one site" if len(record.sites) == 1 else f"{len(record.sites)} sites"
    lead = [
        f"Version {record.version} of {record.name} was tried at {sites}, on {counts[0]} malignant and {counts[1]} "
        "benign patients."
    ]
    if any(site.malignant is None or site.benign is None for site in record.sites):
        lead.append("Where a site has fewer than ten patients of a class, they are in no figure.")
    for name, (whom, what) in _WORDS.items():
        if name in record.figures:
            lead.append(_sentence(record.figures[name], whom, what))
    if (figure := record.figures.get("auroc")) is not None:
        found = figure.cases["exact"]
        further = (
            f"; at a further hospital it may be anything from {_pair(found.prediction)}" if found.prediction else ""
        )
        lead.append(f"The AUROC over the sites is {found.pooled}{further}.")
    return lead


def _sentence(figure: PooledFigure, whom: str, what: str) -> str:
    """Return a rate over the sites in words."""
    cases = list(figure.cases.values())
    values = sorted({_hundred(case.pooled.value) for case in cases})
    bounds = [bound for case in cases for bound in (case.pooled.low, case.pooled.high) if bound is not None]
    text = f"Out of 100 {whom}, {' to '.join(map(str, values))} {what}"
    if bounds:
        text += f" (95 % interval {_hundred(min(bounds))} to {_hundred(max(bounds))})"
    ends = [end for case in cases for end in case.prediction or ()]
    if ends:
        text += f"; at a further hospital it may be anything from {_hundred(min(ends))} to {_hundred(max(ends))}"
    return f"{text}."


def _hundred(share: float) -> int:
    return round(100 * share)


def _pair(bounds: list[float] | None) -> str:
    """Return two bounds as text: one number where they are equal."""
    if bounds is None:
        return "n/a"
    low, high = (f"{bound:.3f}" for bound in bounds)
    return low if low == high else f"{low} to {high}"


def _joined(figure: PooledFigure) -> str:
    """Return the figure of all patients together as text."""
    if figure.joined is not None and figure.joined_bounds is not None and _pair(figure.joined_bounds).count("to") == 0:
        return str(figure.joined)
    if figure.joined_bounds is None:
        return "n/a"
    whole = figure.joined
    around = (
        f" [{whole.low:.3f}, {whole.high:.3f}]" if whole and whole.low is not None and whole.high is not None else ""
    )
    return f"{_pair(figure.joined_bounds)}{around}"


def _outliers(figure: PooledFigure) -> list[tuple[str, str, Interval]]:
    """Return the site without which each case of a figure changes most, with the figure over the others."""
    found = []
    for case, rows in figure.leave_one_out.items():
        if rows:
            mean = figure.cases[case].pooled.value
            most = max(rows, key=lambda row: abs(row.pooled.value - mean))
            found.append((case, most.site, most.pooled))
    return found
