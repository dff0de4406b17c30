"""The parameters of a pipeline as its function declares them; options, variables and tables are derived from these.

python -m pipelines.parameters README.md
"""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter as Option

from pipelines.configuration import DEFAULTS, DEPLOYMENT, LocalOptions
from thyroid.ingest.options import GIVEN_SPLITS
from thyroid.model.backbones import RECIPES
from thyroid.registry.changes import TRAIN_ON

RUN = "run"
"""Parameter that holds the content of run.yaml, for the registry."""
CHOICES = {"recipe": RECIPES, "train_on": TRAIN_ON, "given_splits": GIVEN_SPLITS}
"""For each parameter that has one of a few values, these. One that may be empty is not among them: in the menu of the
Kubeflow UI an empty choice could not be told from none."""
BEGIN, END = "<!-- parameters: written by `make docs` -->", "<!-- end of parameters -->"


@dataclass(frozen=True)
class Parameter:
    """A parameter of a pipeline.

    Attributes:
        name: Its name in the pipeline and in run.yaml.
        kind: str, int, float or bool.
        default: Its default in the pipeline; None if it must be given there.
        text: What the Kubeflow UI says about it.
    """

    name: str
    kind: type
    default: Any
    text: str

    @property
    def variable(self) -> str:
        """Name of the make variable."""
        return self.name.upper()

    @property
    def usual(self) -> str:
        """Default of a run on this machine, in words."""
        return DEFAULTS.get(self.name) or str(self.default) or "none"


def of(pipeline: Any) -> dict[str, Parameter]:
    """Return the parameters of a pipeline that a run on this machine can be given, by name.

    Those of the deployment are left out, since such a run deploys nothing, and so is `RUN`, which the run fills in.

    Args:
        pipeline: The pipeline, as `training_pipeline` or `sweep_pipeline` returns it.
    """
    left_out = {RUN, *DEPLOYMENT}
    kinds, inputs = pipeline.pipeline_func.__annotations__, pipeline.component_spec.inputs
    return {
        name: Parameter(name, kinds[name], given.default, given.description)
        for name, given in inputs.items()
        if name not in left_out
    }


def options(parameters: Mapping[str, Parameter]) -> type:
    """Return a dataclass with one optional field for each parameter; None means that it is not given.

    Args:
        parameters: Parameters by name.
    """
    columns = [
        (
            parameter.name,
            Annotated[
                parameter.kind | None, Option(help=f"{parameter.text} [default: {parameter.usual}]", show_default=False)
            ],
            None,
        )
        for parameter in parameters.values()
    ]
    made = make_dataclass("Given", columns, frozen=True, kw_only=True)
    made.__module__ = __name__  # cyclopts takes a class of the module `types` for a single value
    return made


def given(values: Any) -> dict[str, Any]:
    """Return the parameters that are given in an object of the class that `options` returned."""
    return {field.name: value for field in fields(values) if (value := getattr(values, field.name)) is not None}


def table(parameters: Mapping[str, Parameter]) -> str:
    """Return the Markdown table of the make variables of `make run`.

    Args:
        parameters: Parameters of the training, by name.
    """
    rows = [(parameter.variable, parameter.text, parameter.usual) for parameter in parameters.values()]
    rows += [(name.upper(), text, DEFAULTS[name]) for name, text in attributes(LocalOptions).items()]
    lines = [f"| `{name}` | {_cell(text)} | {_cell(usual)} |" for name, text, usual in rows]
    return "\n".join(["| variable | meaning | default |", "|---|---|---|", *lines])


def _cell(text: str) -> str:
    return text.rstrip(".").replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def attributes(documented: Callable[..., Any]) -> dict[str, str]:
    """Return the texts in the Attributes section of a dataclass' docstring, by name."""
    section = (documented.__doc__ or "").split("Attributes:")[1]
    found = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def write_table(document: Path) -> None:
    """Write the table of parameters between its two marks in a document."""
    from pipelines.training import training_pipeline

    before, _, rest = document.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text(f"{before}{BEGIN}\n{table(of(training_pipeline()))}\n{END}{after}")


if __name__ == "__main__":
    write_table(Path(sys.argv[1]))
