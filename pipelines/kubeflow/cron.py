"""Cron expressions as Kubeflow reads them: checked, in words, and as dates."""

import datetime
import re
from collections.abc import Mapping

from thyroid.errors import InputError

ZONE = "UTC, unless the installation sets CRON_SCHEDULE_TIMEZONE"
"""Time zone of the dates."""
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: tuple[tuple[str, range, dict[str, int]], ...] = (
    ("second", range(60), {}),
    ("minute", range(60), {}),
    ("hour", range(24), {}),
    ("day of month", range(1, 32), {}),
    ("month", range(1, 13), {name: number for number, name in enumerate(_MONTHS, 1)}),
    ("day of week", range(7), {name: number for number, name in enumerate(_DAYS)}),
)
_DAY_FIELDS = ("day of month", "day of week")
_WHOLE = ("*", "?")


def parse(cron: str) -> str:
    """Parse a cron expression as Kubeflow's controller does (robfig/cron 1.2), and write out every field.

    Only the syntax that all cron parsers agree on is accepted: numbers, names, ranges, steps and lists. The controller
    would also accept five fields and read them as second to month. Five fields are therefore refused.

    Args:
        cron: Six fields: second, minute, hour, day of month, month, day of week.

    Returns:
        The same six fields, each as `*` or as numbers separated by commas.

    Raises:
        InputError: The expression does not have six fields, a field cannot be parsed or is out of its range, or both
            the day of month and the day of week are given.
    """
    fields = cron.split()
    if len(fields) == 5:
        raise InputError(
            f"--cron '{cron}': this has five fields, but Kubeflow needs six, seconds first; write '0 {cron.strip()}'"
        )
    if len(fields) != 6:
        raise InputError(
            f"--cron '{cron}': give six fields ({', '.join(name for name, *_ in _FIELDS)}), such as '0 30 2 * * *'"
        )
    written = [
        _field(cron, text, name, allowed, names) for text, (name, allowed, names) in zip(fields, _FIELDS, strict=True)
    ]
    if fields[3] not in _WHOLE and fields[5] not in _WHOLE:
        raise InputError(
            f"--cron '{cron}': fires if the day of month or the day of week matches; set one of them to * "
            "and make a second schedule for the other"
        )
    return " ".join(written)


def _field(cron: str, text: str, name: str, allowed: range, names: Mapping[str, int]) -> str:
    def wrong(why: str) -> InputError:
        return InputError(f"--cron '{cron}': {name} '{text}': {why}")

    if text == "?" and name in _DAY_FIELDS:
        return "*"
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(?:(\*)|([0-9]+|[a-z]+)(?:-([0-9]+|[a-z]+))?)(?:/([0-9]+))?", part, re.IGNORECASE)
        bounds = [names.get(bound.lower(), bound) for bound in match.group(2, 3) if bound] if match else []
        if match is None or any(not str(bound).isdecimal() for bound in bounds):
            raise wrong(
                f"give *, numbers{', names' if names else ''}, ranges (1-5), steps (*/10) and lists (1,3); "
                "Kubeflow knows no L, W, #, H or R"
            )
        low, high = (allowed[0], allowed[-1]) if match[1] else (int(bounds[0]), int(bounds[-1]))
        if match[4] and len(bounds) == 1:
            high = allowed[-1]
        if low not in allowed or high not in allowed:
            raise wrong(f"must lie between {allowed[0]} and {allowed[-1]}")
        if low > high:
            raise wrong("the range ends before it begins; split it into two ranges with a comma")
        if match[4] and not 0 < int(match[4]) <= high - low:
            raise wrong(f"a step must be at least 1 and no larger than the range of {high - low}")
        found.update(range(low, high + 1, int(match[4] or 1)))
    return "*" if len(found) == len(allowed) else ",".join(map(str, sorted(found)))


def words(cron: str) -> str:
    """Return a cron expression in English words, such as "At 02:30".

    Raises:
        InputError: The expression is refused by `parse`.
    """
    from cron_descriptor import Options, get_description

    parse(cron)
    return str(get_description(cron, Options(use_24hour_time_format=True, locale_code="en_US")))


def following(cron: str, after: datetime.datetime, count: int = 3) -> list[datetime.datetime]:
    """Return the next dates of a cron expression.

    Args:
        cron: Six fields, as in `parse`.
        after: Date that they follow; the result has its time zone.
        count: Number of dates.

    Raises:
        InputError: The expression is refused by `parse`, or it never fires.
    """
    from croniter import CroniterBadDateError, croniter

    dates = croniter(parse(cron), after, second_at_beginning=True)
    try:
        return [dates.get_next(datetime.datetime) for _ in range(count)]
    except CroniterBadDateError:
        raise InputError(f"--cron '{cron}': this date never occurs") from None
