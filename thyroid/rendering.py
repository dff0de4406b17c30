"""One Jinja environment for the templates of all packages' reports and documents."""

import jinja2

from thyroid import metrics


def environment(package: str, escape: bool = True) -> jinja2.Environment:
    """Return an environment that reads `templates/` of a package.

    It has the filter `interval` (`metrics.format_interval`).

    Args:
        package: Full name of the package, such as "thyroid.evaluate".
        escape: Whether values are escaped for HTML; False for Markdown.
    """
    loader = jinja2.PackageLoader(package)
    made = jinja2.Environment(loader=loader, autoescape=escape, trim_blocks=True, lstrip_blocks=True)
    made.filters["interval"] = metrics.format_interval
    return made
