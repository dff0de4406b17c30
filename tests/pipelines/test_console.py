"""The command `thyroid`, and what all command lines have in common."""

import subprocess
import sys

import pytest

from pipelines import console
from pipelines.__main__ import COMMANDS
from tests.support import ROOT


def test_help_lists_every_command_and_imports_none(capsys):
    code = (
        "import sys; from pipelines.console import main; assert main(['--help']) == 0\n"
        "heavy = {'tensorflow', 'keras', 'kfp', 'pandas', 'cv2', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in (*COMMANDS, *console.MODULES):
        assert f"  {name}\n" in done.stdout


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["serv"], "serve"),
        (["run", "--sensitivty", "0.9"], "--sensitivity"),
        (["submit", "--name-space", "lab"], "--namespace"),
    ],
)
def test_a_mistyped_name_is_one_line_that_names_the_nearest(capsys, line, said):
    assert console.main(line) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert out == ""


@pytest.mark.parametrize(
    "line", [["run", "--seed", "many"], ["run", "scans"], ["run", "--preset", "slow"], ["run", "--seed"]]
)
def test_a_value_that_cannot_be_used_is_one_line(capsys, line):
    assert console.main(line) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_command_of_the_library_gets_the_other_arguments(tmp_path, capsys):
    assert console.main(["phantom", "--output", str(tmp_path / "sample"), "--patients", "2"]) == 0
    assert (tmp_path / "sample" / "rois.csv").is_file()
    assert console.main(["crop", "--help"]) == 0
    assert "--data" in capsys.readouterr().out
