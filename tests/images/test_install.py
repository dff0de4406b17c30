"""images/install.py, against a package index of the test's own."""

import functools
import hashlib
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.test_house import MODULES, imports, pins


@pytest.fixture
def lock(tmp_path) -> Path:
    """A lock with the only package that the index has."""
    wheel = tmp_path / "simple" / "nodule" / "nodule-1.2-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("nodule.py", "")
        file.writestr("nodule-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: nodule\nVersion: 1.2\n")
        file.writestr("nodule-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("nodule-1.2.dist-info/RECORD", "nodule.py,,\n")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (wheel.parent / "index.html").write_text(f'<a href="{wheel.name}#sha256={digest}">{wheel.name}</a>')
    (tmp_path / "a.lock").write_text(f"nodule==1.2 --hash=sha256:{digest}\n")
    return tmp_path / "a.lock"


@pytest.fixture
def index(lock) -> Iterator[str]:
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(lock.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/simple/"
        server.shutdown()


def install(lock: Path, settings: str, **environment: str) -> tuple[subprocess.CompletedProcess, list[Path]]:
    """Install the lock into a new environment, with the text of pip.conf; what of the package is there afterwards."""
    into = lock.parent / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", into], check=True)
    (lock.parent / "pip.conf").write_text(settings)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    clean |= {
        "PIP_CONFIG_FILE": str(lock.parent / "pip.conf"),
        "UV_CACHE_DIR": str(lock.parent / "cache"),
    } | environment
    command = [sys.executable, ROOT / "images" / "install.py", lock, "--into", into / "bin" / "python", "--compile"]
    done = subprocess.run(command, env=clean, capture_output=True, text=True)
    return done, sorted(into.rglob("nodule*.py*"))


@pytest.mark.parametrize("way", ["pip.conf", "environment"])
def test_the_index_of_pips_settings_is_used(lock, index, way):
    settings, environment = (
        (f"[global]\nindex-url = {index}\n", {}) if way == "pip.conf" else ("", {"PIP_INDEX_URL": index})
    )
    done, found = install(lock, settings, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
    assert {path.suffix for path in found} == {".py", ".pyc"}, (
        "bytecode is written, whatever PYTHONDONTWRITEBYTECODE says"
    )


def test_where_uv_fails_pip_installs_and_it_is_said(lock, index):
    done, found = install(lock, f"[global]\nindex-url = {index}\n", UV_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert found
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"uv could not install {lock}")
    assert line.endswith("pip does, which takes minutes")


def test_a_package_that_is_not_the_locked_one_is_refused(lock, index):
    lock.write_text(f"nodule==1.2 --hash=sha256:{'0' * 64}\n")
    done, found = install(lock, f"[global]\nindex-url = {index}\n")
    assert done.returncode != 0
    assert not found


def test_what_the_product_imports_is_set_up_without_the_tests_tools():
    """But for what `make pool` adds when it is first asked for."""
    locked, owners = set(pins(ROOT / "requirements.lock")), packages_distributions()
    added = {"thyroid/validate/share/effects.py": set(pins(ROOT / "images" / "validate.lock"))}
    ours = {"thyroid", "components", "pipelines", ""} | sys.stdlib_module_names
    for path in MODULES:
        for name in imports(path) - ours:
            distributions = {re.sub("[-_.]+", "-", one).lower() for one in owners[name]}
            allowed = locked | added.get(path.relative_to(ROOT).as_posix(), set())
            assert distributions & allowed, (path, name)
