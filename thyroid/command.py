"""Builds command lines from functions: their signatures give the options and types, their docstrings the help."""

import difflib
import getpass
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cyclopts import App, CycloptsError, Parameter, Token

from thyroid import errors
from thyroid.errors import InputError

FLAT = Parameter(name="*")
"""Marks a dataclass whose fields are options of their own: `options: Annotated[IngestOptions, FLAT]`."""
SEVERAL = Parameter(consume_multiple=True)
"""Marks an option that takes any number of values: `--waive calibration subgroups`."""
AT_LEAST_ONE = Parameter(consume_multiple=(1, None))
"""Marks an option that takes one or more values: `--models VGG16 VGG19`."""
COMMAS = Parameter(n_tokens=1, converter=lambda _, tokens: [item for item in tokens[-1].value.split(",") if item])
"""Marks a list that is given as one value with commas: `--domains normal,cropped`."""
NOT_AN_OPTION = Parameter(parse=False)
"""Marks a field with a default that only code sets."""


def app(program: str, text: str) -> App:
    """Return an App with the conventions of all commands: plain help, and one value after each option.

    An option that may be repeated is a sequence; of any other option, the last value counts. A flag has no negation
    unless its parameter names one.

    Args:
        program: How the command is started, such as `python -m thyroid.crop`.
        text: Description for `--help`, of which the first line is used.
    """
    return App(
        name=program,
        help=text.strip().split("\n")[0],
        help_format="plaintext",
        help_formatter=_PlainHelp(),
        version_flags=[],
        result_action="return_none",
        default_parameter=Parameter(negative=(), allow_repeating=True),
        suppress_keyboard_interrupt=False,  # `errors.command` turns it into exit code 130
    )


def one_of(names: Sequence[str]) -> Parameter:
    """Return the mark of an option whose value must be one of these names, or empty."""

    def convert(_: object, tokens: Sequence[Token]) -> str:
        value = tokens[-1].value
        if value and value not in names:
            raise InputError(f"{tokens[-1].keyword} {value}: choose from {', '.join(names)}")
        return value

    return Parameter(n_tokens=1, converter=convert)


def main(
    program: str, run: Callable[..., None] | Mapping[str, Callable[..., None]], text: str = ""
) -> Callable[..., int]:
    """Return the `main` of a command.

    It takes the arguments without the program's name, or None for those of the process, and optionally another name of
    the program for its help and its messages. It returns the exit code: an error of the user is one line on stderr and
    exit code 2.

    Args:
        program: How the command is started, such as `python -m thyroid.crop`.
        run: The function of the command, or functions by the names of the commands.
        text: Description for `--help`, of which the first line is used; if empty, that of the function.
    """

    @errors.command
    def main(argv: Sequence[str] | None = None, program: str = program) -> None:
        commands = app(program, text or run.__doc__ or "")
        arguments = sys.argv[1:] if argv is None else argv
        if isinstance(run, Mapping):
            if not arguments:
                raise InputError(f"{program}: give a command: {', '.join(run)}")
            for name, function in run.items():
                commands.command(function, name=name)
        else:
            commands.default(run)
        call(commands, arguments)

    return main


def call(commands: App, argv: Sequence[str] | None = None) -> None:
    """Parse a command line and call its function.

    Args:
        commands: The commands.
        argv: Arguments without the program's name; None for those of the process.

    Raises:
        InputError: An option or a command is unknown (the message names the nearest one), missing or not of its type.
    """
    try:
        commands(argv, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        message = " ".join(str(error).split()).rstrip(".")
        raise InputError(re.sub(r"\.? Did you mean (.*?)\?", r"; did you mean \1?", message)) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the known name that is most like the given one, or else all known names.

    Args:
        name: The unknown name.
        known: The names that exist.
    """
    names = list(known)
    found = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {found[0]}?" if found else f"; choose from {', '.join(names)}"


class _PlainHelp:
    """Formats the help as text without colours or boxes, wrapped to the terminal; see `cyclopts.help`."""

    def __call__(self, console: Any, options: Any, panel: Any) -> None:
        """Print the commands or the options."""
        if not panel.entries:
            return
        lines = [f"{panel.title}:"]
        for entry in panel.entries:
            text = _plain(console, entry.description)
            if entry.choices:
                text += f" [choices: {', '.join(entry.choices)}]"
            if entry.default not in (None, "False", "()", '""', ""):
                text += f" [default: {entry.default}]"
            lines.append(f"  {', '.join(entry.all_options)}")
            lines += textwrap.wrap(text.strip(), console.width - 8, initial_indent=" " * 6, subsequent_indent=" " * 6)
        _print(console, "\n".join(lines))

    def render_usage(self, console: Any, options: Any, usage: Any) -> None:
        """Print how the command is called."""
        text = _plain(console, usage)
        _print(console, f"usage: {text.removeprefix('Usage: ')}\n")

    def render_description(self, console: Any, options: Any, description: Any) -> None:
        """Print what the command does."""
        text = _plain(console, description)
        if text:
            _print(console, textwrap.fill(text, console.width) + "\n")


def _plain(console: Any, renderable: Any) -> str:
    if renderable is None:
        return ""
    with console.capture() as captured:
        console.print(renderable, markup=False, highlight=False, no_wrap=True, crop=False, overflow="ignore")
    return " ".join(captured.get().split())


def _print(console: Any, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def user_name() -> str:
    """Return the name of the current user, who is responsible for what a command changes.

    Raises:
        InputError: The user has no name on this system.
    """
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise InputError(
            "the current user has no name on this system; give the name of the responsible person with --by"
        ) from None
