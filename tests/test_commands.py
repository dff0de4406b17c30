"""Every command refuses a misspelt option by name, and describes all its options."""

import re

import pytest

from pipelines import __main__ as pipelines
from pipelines import console
from thyroid.registry import __main__ as registry

COMMANDS = [
    *((name,) for name in pipelines.COMMANDS),
    *((name,) for name in console.MODULES if name != "registry"),
    *(("registry", name) for name in registry.COMMANDS),
]


@pytest.fixture(params=COMMANDS, ids=" ".join)
def command(request) -> list[str]:
    return list(request.param)


@pytest.fixture
def text(command, capsys) -> str:
    """What the command prints for `--help`."""
    assert console.main([*command, "--help"]) == 0
    return capsys.readouterr().out


def options(text: str) -> list[str]:
    return [name for name in re.findall(r"^  (--[a-z-]+)$", text, re.MULTILINE) if name != "--help"]


def required(text: str) -> dict[str, str]:
    """Every option that must be given, with a value of its type."""
    usage = re.search(r"^usage: (.*)$", text, re.MULTILINE)
    assert usage
    return dict.fromkeys(re.findall(r"(--[a-z-]+)", usage[1]), "x")


def test_the_help_names_the_program_and_describes_every_option(command, text):
    assert re.match(rf"usage: thyroid {' '.join(command)}\s", text)
    entries = re.findall(r"^  ([A-Z]+|-\S.*)\n(.*)", text, re.MULTILINE)
    assert len(entries) >= len(options(text))
    for name, line in entries:
        assert re.match(r" {6}\w", line), name
        assert "`" not in line, f"{name}: names code"


def test_a_misspelt_option_is_one_line_that_names_the_nearest(command, text, capsys):
    needed, places = required(text), re.findall(r"^usage: .* ([A-Z]+)$", text, re.MULTILINE)
    known = options(text)
    for name in known:
        misspelt = f"{name[:-2]}{name[-1]}" if len(name) > 5 else f"{name}{name[-1]}"
        if misspelt in known:
            continue
        given = [part for option, value in needed.items() if option != name for part in (option, value)]
        assert console.main([*command, *places, *given, f"{misspelt}=1"]) == 2, name
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1), err
        assert err.startswith("error: ")
        assert misspelt in err, err
        assert re.search(rf"did you mean {name}\b", err), err


def test_a_command_without_options_refuses_one(capsys):
    assert console.main(["dicom", "scans", "--store=x"]) == 2
    assert capsys.readouterr().err == "error: Unknown option: --store\n"


def test_the_registry_needs_a_command(capsys):
    assert console.main(["registry"]) == 2
    assert capsys.readouterr().err.endswith(": give a command: list, show, promote, rollback, gc, hub\n")


def test_the_choices_in_a_help_text_are_those_of_the_code(capsys):
    from thyroid.data import tables
    from thyroid.evaluate.audits import audits
    from thyroid.ingest.options import GIVEN_SPLITS
    from thyroid.model import backbones, engine

    for name, choices in (
        ("ingest", GIVEN_SPLITS),
        ("train", (*backbones.BACKBONES, *backbones.RECIPES, *tables.DOMAINS)),
        ("evaluate", (*audits.WAIVABLE, *tables.DOMAINS)),
        ("serve", engine.FORMS),
    ):
        assert console.main([name, "--help"]) == 0
        printed = " ".join(capsys.readouterr().out.replace("-\n      ", "-").split())
        for choice in choices:
            assert choice in printed, choice


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["train", "--data", "x", "--output", "x", "--backbone", "VGG16", "--domain", "whole"], "normal, cropped"),
        (["evaluate", "--data", "x", "--models", "x", "--output", "x", "--serving-domain", "whole"], "normal, cropped"),
        (["evaluate", "--data", "x", "--output", "x", "--models"], "--models"),
        (["serve", "--registry", "x", "--form", "onnx"], "openvino-f32"),
        (["serve"], "--model-dir"),
        (["serve", "--registry", "x", "--model-dir", "x"], "--model-dir"),
        (["serve", "--registry", "x", "--token", "secret"], "--token"),
        (["crop", "--data", "x", "--output", "x", "--splits", "test"], "--splits"),
        (["train", "--data", "x", "--output", "x", "--backbone", "VGG16", "--seed", "-1"], "seed -1"),
    ],
)
def test_a_value_that_cannot_be_used_is_one_line(capsys, line, said):
    assert console.main(line) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err


def test_options_reach_the_step(monkeypatch, tmp_path):
    from thyroid import crop
    from thyroid.deploy import __main__ as deploy
    from thyroid.evaluate import __main__ as evaluate

    calls = []
    for module, name in ((crop, "crop"), (deploy, "deploy"), (evaluate, "evaluate")):
        monkeypatch.setattr(module, name, lambda *arguments: calls.append(arguments))
    assert crop.main(["--data", "a", "--output", "b", "--domains", "normal,cropped", "--margin", "0.3"]) == 0
    assert deploy.main(["--registry", "gs://b/r", "--gpu", "--timeout", "1", "--timeout", "2"]) == 0
    few = ["--data", "a", "--output", "b", "--models", "c", "d"]
    assert evaluate.main([*few, "--waive", "leakage", "clinical"]) == evaluate.main([*few, "--waive"]) == 0
    made, served, judged, strict = (arguments[-1] for arguments in calls)
    assert (list(made.domains), made.margin) == (["normal", "cropped"], 0.3)
    assert (served.serving_gpu, served.timeout) == (True, 2.0)
    assert list(judged.waive) == ["leakage", "clinical"]
    assert list(strict.waive) == []
    assert [path.name for path in calls[2][1]] == ["c", "d"]
