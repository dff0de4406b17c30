"""Reports and documents: one Jinja environment for the templates of every package."""

import jinja2

from thyroid import metrics


def environment(package: str, escape: bool = True) -> jinja2.Environment:
    """Return an environment that reads `templates/` of a package, with the filter `interval` (`metrics.format_interval`).

    Args:
        package: full name, such as "thyroid.evaluate".
        escape: whether values are escaped for HTML; False for Markdown.
    """
    loader = jinja2.PackageLoader(package)
    made = jinja2.Environment(loader=loader, autoescape=escape, trim_blocks=True, lstrip_blocks=True)
    made.filters["interval"] = metrics.format_interval
    return made
