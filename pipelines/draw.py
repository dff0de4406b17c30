"""Draws a compiled pipeline: the order of its steps, and the image and the resources of each."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from PIL import Image

_COLOURS = {"data": "#dbeafe", "train": "#fde68a", "ops": "#dcfce7"}
EDGES = "edges"
"""Name of the PNG's text field that holds the edges as JSON."""


class Step(NamedTuple):
    """A node of the picture.

    Attributes:
        name: The step's name in the UI.
        after: Names of the steps that it waits for.
        image: Dependency set of its image: data, train or ops.
        resources: Its memory and GPUs in words.
    """

    name: str
    after: list[str]
    image: str
    resources: str


def steps(package: Path) -> list[Step]:
    """Return the steps of a compiled pipeline in an order in which they can run.

    Nested levels, such as that of a condition, are flattened into one.

    Args:
        package: YAML file that `compile` wrote.
    """
    specification, *_ = yaml.safe_load_all(package.read_text())
    components, executors = specification["components"], specification["deploymentSpec"]["executors"]
    found: list[Step] = []

    def walk(tasks: Mapping[str, Any], before: list[str]) -> list[str]:
        """Add the steps of a level whose first steps wait for `before`; return those that no other step waits for."""
        last: dict[str, list[str]] = {}
        while len(last) < len(tasks):
            for key, task in tasks.items():
                needs = task.get("dependentTasks", [])
                if key in last or not set(needs) <= last.keys():
                    continue
                after = [name for need in needs for name in last[need]] or before
                component = components[task["componentRef"]["name"]]
                if "dag" in component:
                    last[key] = walk(component["dag"]["tasks"], after)
                    continue
                container = executors[component["executorLabel"]]["container"]
                image = container["image"].rsplit(":", 1)[0].rsplit("-", 1)[1]
                found.append(Step(task["taskInfo"]["name"], after, image, _resources(container)))
                last[key] = [found[-1].name]
        waited_for = {need for task in tasks.values() for need in task.get("dependentTasks", [])}
        return [name for key, names in last.items() if key not in waited_for for name in names]

    walk(specification["root"]["dag"]["tasks"], [])
    return found


def _resources(container: Mapping[str, Any]) -> str:
    resources = container.get("resources", {})
    text = f"{resources.get('resourceMemoryRequest', '?')} to {resources.get('resourceMemoryLimit', '?')}"
    gpu = resources.get("accelerator")
    return f"{text}\n{gpu['resourceCount']} x {gpu['resourceType']}" if gpu else text


def edges(found: list[Step]) -> list[tuple[str, str]]:
    """Return every edge as (from, to), sorted."""
    return sorted((before, step.name) for step in found for before in step.after)


def draw(package: Path, output: Path) -> None:
    """Draw a compiled pipeline to a PNG, which also holds the edges in its text field `EDGES`.

    Args:
        package: YAML file that `compile` wrote.
        output: PNG file to write.
    """
    from matplotlib.figure import Figure

    found = steps(package)
    depth: dict[str, int] = {}
    for step in found:
        depth[step.name] = max((depth[name] + 1 for name in step.after), default=0)
    levels: dict[int, list[Step]] = {}
    for step in found:
        levels.setdefault(depth[step.name], []).append(step)
    place = {step.name: (level, (len(row) - 1) / 2 - i) for level, row in levels.items() for i, step in enumerate(row)}
    figure = Figure(figsize=(1.9 * len(levels), 0.95 * max(map(len, levels.values())) + 0.3), layout="constrained")
    axes = figure.subplots()
    for step in found:
        x, y = place[step.name]
        for before in step.after:
            x0, y0 = place[before]
            if x - x0 > 1:
                continue  # a longer path is drawn instead; the title mentions conclude
            axes.annotate("", (x - 0.33, y), (x0 + 0.33, y0), arrowprops={"arrowstyle": "->", "color": "#64748b"})
        box = {"boxstyle": "round,pad=0.5", "facecolor": _COLOURS.get(step.image, "white"), "edgecolor": "#475569"}
        text = f"{step.name}\n{step.image} image\n{step.resources}"
        axes.text(x, y, text, ha="center", va="center", fontsize=8, bbox=box)
    axes.set(
        xlim=(-0.55, len(levels) - 0.45),
        ylim=(-0.3 - max(map(len, levels.values())) / 2, max(map(len, levels.values())) / 2 + 0.3),
    )
    axes.axis("off")
    axes.set_title(
        "Memory is request to limit. After ingest either crop or rest: is enough new? conclude runs whatever happened.",
        fontsize=8,
    )
    figure.savefig(output, dpi=130, metadata={EDGES: json.dumps(edges(found)), "Software": "thyroid"})


def drawn_edges(picture: Path) -> list[tuple[str, str]]:
    """Return the edges as (from, to) that are stored in a picture."""
    with Image.open(picture) as image:
        return [(before, after) for before, after in json.loads(image.text[EDGES])]  # type: ignore[attr-defined]
