"""The house's own rules: who may import whom, and that what is documented exists."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

ALLOWED = {
    "thyroid": {"thyroid"},
    "components": {"components", "thyroid"},
    "pipelines": {"pipelines", "components", "thyroid"},
}
MODULES = [path for folder in ALLOWED for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path, top_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_dependencies_go_one_way(path):
    top = path.relative_to(ROOT).parts[0]
    ours = {"thyroid", "components", "pipelines"} & imports(path)
    assert ours <= ALLOWED[top]
    if top == "thyroid":
        assert "kfp" not in imports(path)
    if top == "components":
        assert not {"tensorflow", "keras", "pandas"} & imports(path, top_level=True)


FLOORS = (
    {""},  # the ground floor: modules of thyroid itself, and the packages of GROUND
    {"records"},
    {"imaging", "notify"},
    {"data"},
    {"clinical", "model"},
    {"registry"},
    {"ingest"},
    {"crop"},
    {"train"},
    {"locate"},
    {"sweep", "evaluate"},
    {"deploy"},
    {"serve"},
    {"web", "validate"},
    {"watch"},
    {"label"},
)
"""Packages of thyroid, and `crop`, a step of one module: each imports itself and what stands above it here."""
GROUND = {"metrics", "storage"}
"""Packages of the ground floor."""
DOORS = {"conclude", "diagnose", "dicom", "exchange", "phantom", "pool", "register", "retention", "suspects"}
"""Commands `python -m thyroid.NAME` whose code lies in a package."""
MOST_MODULES = 13
LIBRARY = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in MODULES
    if path.is_relative_to(ROOT / "thyroid")
}


def package(module: str) -> str:
    """The package of thyroid that a module is in; "" for those of thyroid itself."""
    _, _, inside = module.partition(".")
    first, _, rest = inside.partition(".")
    if first in GROUND:
        return ""
    return first if rest or first == "crop" or (ROOT / "thyroid" / first).is_dir() else ""


def imported(module: str) -> set[str]:
    """Modules of thyroid that a module imports anywhere in it, also for types alone."""
    found = set()
    for node in ast.walk(ast.parse(LIBRARY[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in LIBRARY else node.module for name in inner}
    return found & set(LIBRARY) - {module, "thyroid"}


@pytest.mark.parametrize("module", LIBRARY)
def test_packages_import_downward(module):
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    own = package(module)
    if module.removeprefix("thyroid.") in DOORS:
        code = [line for line in LIBRARY[module].read_text().splitlines() if line]
        assert len(code) <= 5
        return
    for other in imported(module):
        assert package(other) == own or floor[package(other)] < floor[own], f"{module} imports {other}"


def test_no_module_imports_itself_by_way_of_others():
    below: dict[str, set[str]] = {module: imported(module) for module in LIBRARY}
    while leaves := {module for module, others in below.items() if not others}:
        below = {module: others - leaves for module, others in below.items() if module not in leaves}
    assert not below


def test_packages_stay_small():
    for names in FLOORS:
        for name in (names | GROUND) - {"", "crop"}:
            modules = [path for path in (ROOT / "thyroid" / name).glob("*.py") if path.name != "__init__.py"]
            assert len(modules) <= MOST_MODULES, name


LONGEST_MODULE, LONGEST_FUNCTION = 400, 60
DAGS = {"pipelines/training.py", "pipelines/sweep.py", "pipelines/validation.py", "pipelines/watch.py"}
"""Their parameters and steps stand in one function, which Kubeflow makes its form of."""


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_module_says_what_it_is_and_stays_short(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert len(text.splitlines()) <= LONGEST_MODULE
    if path.relative_to(ROOT).as_posix() in DAGS:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, node.name


# What an image holds: its steps, and what they must not import.
IMAGES = {
    "data": (["thyroid.ingest.__main__", "thyroid.crop"], {"tensorflow", "keras", "sklearn", "kfp", "kserve"}),
    "web": (["thyroid.web.__main__"], {"tensorflow", "keras", "openvino", "sklearn", "kserve", "matplotlib"}),
    "label": (
        ["thyroid.label.__main__"],
        {"tensorflow", "keras", "openvino", "sklearn", "kserve", "matplotlib", "imagehash"},
    ),
    "ops": (
        ["thyroid.register", "thyroid.registry.__main__", "thyroid.deploy.__main__", "thyroid.conclude"],
        {"tensorflow", "keras", "sklearn", "cv2", "matplotlib"},
    ),
    "listen": (
        ["pipelines.events.server", "pipelines.events.listen", "pipelines.events.start"],
        {"tensorflow", "keras", "openvino", "sklearn", "kserve", "matplotlib", "flask", "pyarrow", "faiss"},
    ),
}
TRIED = {"pyarrow"}
"""What other libraries import where it is installed."""


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_does_without_what_the_others_need(image):
    """Neither needs it nor imports it where it is installed."""
    modules, others = IMAGES[image]
    without = f"import sys; sys.modules.update(dict.fromkeys({others}))"
    taken = f"import sys, {', '.join(modules)}; print(*{others - TRIED} & set(sys.modules))"
    for code in (f"{without}; import {', '.join(modules)}", taken):
        done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.split() == []


COMMANDS = [
    "pipelines",
    *(
        f"thyroid.{module}"
        for module in (
            *("phantom", "dicom", "ingest", "crop", "train", "diagnose", "evaluate", "register", "registry"),
            *("retention", "deploy", "conclude", "serve", "web", "sweep", "locate"),
            *("suspects", "exchange", "label", "validate", "pool", "watch", "notify"),
        )
    ),
]
HELP = """
import contextlib, io, json, runpy, sys
told = {}
for module in sys.argv[1:]:
    sys.argv = [module, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            told[module] = end.code, output.getvalue()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[int, str]]:
    """Module to the exit status and the output of `python -m MODULE --help`.

    All of them in one interpreter, since importing the libraries is most of what one takes.
    """
    done = subprocess.run([sys.executable, "-c", HELP, *COMMANDS], capture_output=True, text=True, cwd=ROOT, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("module", COMMANDS)
def test_every_step_is_a_command(helps, module):
    status, told = helps[module]
    assert status == 0
    assert f"python -m {module}" in told


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_make_help_lists_every_target():
    done = subprocess.run(["make", "help"], capture_output=True, text=True, cwd=ROOT, check=True)
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert set(phony[1].split()) == targets()
    for target in targets():
        assert f"make {target}" in done.stdout


def make(*arguments: str) -> subprocess.CompletedProcess:
    # by itself, although `make test` runs this one
    own = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(["make", "--dry-run", *arguments], capture_output=True, text=True, cwd=ROOT, env=own)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("BACKBONE=VGG16", "BACKBONE: make has no such variable here; did you mean BACKBONES?"),
        ("backbones=VGG16", "backbones: make has no such variable here; did you mean BACKBONES?"),
        ("SCAN=a folder", "SCAN: make has no such variable here; did you mean SCANS?"),
        ("READY=", "READY: make has no such variable here"),
        ("XYZ=1", "XYZ: make has no such variable here. `make help` lists them"),
    ],
)
def test_a_mistyped_make_variable_is_refused_by_name(given, said):
    done = make("run", given)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def listed(name: str) -> list[str]:
    """The words of one of the Makefile's lists."""
    done = make("--eval", f"show-list: ; @echo $({name})", "show-list")
    return done.stdout.removeprefix("echo ").split()


def test_make_knows_every_variable_that_may_be_given():
    text = (ROOT / "Makefile").read_text()
    written = re.search(r"^KNOWN := ((?:.*\\\n)*.*)", text, re.MULTILINE)
    assert written
    names = set(listed("KNOWN"))
    read = set(re.findall(r"\$\((?:or |if |foreach one,\$\()?([A-Z][A-Z_]+)", text.replace(written[0], "")))
    own = set(re.findall(r"^(?:[a-z-]+: )?([A-Z][A-Z_]+) :?= ", text, re.MULTILINE)) - {"TAG"}
    lists = ("PARAMETERS", "SWEEP_PARAMETERS", "VALIDATE_PARAMETERS", "WATCH_PARAMETERS", "PLACEMENT")
    options = {name.upper() for each in lists for name in listed(each)}
    assert names - read - options == {"BASE_IMAGE", "CONTAINER_ENGINE"}, "what images/*.sh read"
    assert read - names - own == {"CURDIR", "MAKE"}
    done = make("submit", "HOST=x", "SET=scans=/data/scans registry=/data/registry")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_signature_of_the_pipelines_is_the_only_list_of_parameters():
    from dataclasses import fields

    from pipelines import run, search
    from pipelines.configuration import LocalOptions
    from thyroid.validate.options import ValidateOptions
    from thyroid.watch.options import WatchOptions

    local = [field.name for field in fields(LocalOptions)]
    assert listed("PARAMETERS") == [*local, *run.PARAMETERS]
    assert listed("SWEEP_PARAMETERS") == [*local, *search.PARAMETERS]
    assert {*listed("VALIDATE_PARAMETERS"), "registry"} == {field.name for field in fields(ValidateOptions)}
    assert {*listed("WATCH_PARAMETERS"), "registry"} == {field.name for field in fields(WatchOptions)}
    done = make("run", "SERVING_DOMAIN=normal", "CLASSES=2<3|4a", "OUTPUT=a folder")
    (line,) = [line for line in done.stdout.splitlines() if "-m pipelines run" in line]
    assert line.endswith('-m pipelines run --output "a folder" --classes "2<3|4a" --serving-domain "normal"')


def test_the_readme_has_the_table_of_parameters():
    from pipelines import parameters, run

    readme = (ROOT / "README.md").read_text()
    table = readme.partition(parameters.BEGIN)[2].partition(parameters.END)[0]
    assert table.strip() == parameters.table(run.PARAMETERS), "run `make docs`"


def test_what_can_be_waived_is_named_wherever_waivers_are_given():
    from thyroid.evaluate.audits.audits import WAIVABLE

    for place in ("README.md", "pipelines/training.py"):
        text = (ROOT / place).read_text()
        assert ", ".join(WAIVABLE) in text or ",".join(WAIVABLE) in text, place


def test_readme_names_only_what_exists():
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"\bmake ([a-z-]+)", readme)) <= targets()
    for path in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert (ROOT / path).exists(), path
    assert set(re.findall(r"python -m (thyroid\.\w+|pipelines)", readme)) <= set(COMMANDS)


LOCKS = [*sorted(ROOT.glob("*.lock")), ROOT / "manifests" / "checkov.lock", *sorted((ROOT / "images").glob("*.lock"))]


def pins(lock: Path) -> dict[str, str]:
    """Package to version; several versions of one differ by Python or platform."""
    return dict(re.findall(r"^([a-z0-9._-]+)(?:\[[a-z-]+\])?==([^ ;]+)", lock.read_text(), re.MULTILINE))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_locks_have_hashes_and_no_urls(lock):
    text = lock.read_text()
    assert "://" not in text
    assert pins(lock)
    assert not re.findall(r"^[a-z0-9-]+==[^\\]*$", text, re.MULTILINE)


def test_images_and_set_up_hold_the_versions_that_are_tested():
    tested = pins(ROOT / "requirements-dev.lock")
    assert pins(ROOT / "requirements.lock").items() < tested.items()
    for lock in (ROOT / "images").glob("*.lock"):
        differ = {n: v for n, v in pins(lock).items() if n in tested and tested[n] != v}
        assert not differ, lock.name
    extras = {lock.stem for lock in (ROOT / "images").glob("*.lock")} - {"build"}
    assert extras == {
        *("data", "train", "train-gpu", "ops", "serve", "serve-gpu", "web", "label", "validate", "watch", "listen"),
    }


def test_research_use_only_stands_on_what_people_see():
    for file in (
        "README.md",
        "thyroid/plot_style.py",
        "thyroid/evaluate/templates/report.html",
        "thyroid/evaluate/templates/card.md",
        "thyroid/sweep/templates/sweep.html",
        "thyroid/serve/answers.py",
        "thyroid/serve/__main__.py",
        "thyroid/serve/openapi.py",
        "thyroid/web/words/en.json",
        "thyroid/web/__main__.py",
        "thyroid/label/__main__.py",
        "thyroid/validate/__main__.py",
        "thyroid/validate/templates/report.html",
        "thyroid/validate/templates/pool.html",
        "thyroid/registry/validations.py",
        "thyroid/registry/hub/client.py",
        "thyroid/notify/notify.py",
        "thyroid/watch/__main__.py",
        "pipelines/events/listen.py",
        "pipelines/events/server.py",
        "thyroid/watch/templates/report.html",
        "docs/watch.md",
        "docs/validate.md",
        "docs/api.md",
        "manifests/base/dashboard.json",
        "components/pages.py",
        "docs/kubeflow.md",
        "images/Dockerfile",
        "thyroid/deploy/manifest.py",
    ):
        text = (ROOT / file).read_text()
        assert "esearch use only" in text or "RESEARCH_USE_ONLY" in text or "notice }}" in text, file
