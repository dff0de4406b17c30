"""What containers of steps are told of this environment; `tests/e2e/test_containers.py` runs real ones."""

from types import SimpleNamespace

import pytest
from kfp.local.docker_task_handler import DockerTaskHandler
from kfp.local.status import Status

from pipelines.local import containers
from pipelines.local import steps as local
from pipelines.local.plan import Plan


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Command line of a step's container, from an engine that only notes it."""
    monkeypatch.setattr(DockerTaskHandler, "run", DockerTaskHandler.run)
    (tmp_path / "podman").write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/told\n')
    (tmp_path / "podman").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def run(step: str = "crop", **given) -> str:
        containers.runner("podman", [], [], [], **given)
        command = ["python3", "-m", "components", step]
        task = SimpleNamespace(
            pipeline_root=tmp_path, get_volumes_to_mount=dict, env_vars={}, full_command=command, image="x"
        )
        steps = local.Steps(Plan([]), 1, 1e9)
        steps.queue([act := local.Task(steps, step)])
        local.current.set(act)
        assert DockerTaskHandler.run(task) == Status.SUCCESS
        return (tmp_path / "told").read_text()

    return run


def test_accounts_and_endpoints_of_buckets_are_handed_on_by_name_alone(told, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST"):
        monkeypatch.setenv(name, "http://a-secret")
    line = told()
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST"):
        assert f"-e {name} " in line
    assert "a-secret" not in line
    assert "XDG_CACHE_HOME" not in line


@pytest.mark.parametrize("step", ["crop", "conclude"])
def test_receivers_of_notifications_are_handed_on_by_name_to_those_who_tell(told, monkeypatch, step):
    monkeypatch.setenv("THYROID_NOTIFY_SLACK", "http://a-secret")
    line = told(step)
    assert ("-e THYROID_NOTIFY_SLACK " in line) == (step == "conclude")
    assert "a-secret" not in line


def test_steps_share_what_they_download(told, tmp_path):
    cache = tmp_path / "cache" / "thyroid"
    line = told(cache=cache)
    assert f"-v {cache}:{cache}:rw" in line
    assert f"-e XDG_CACHE_HOME={cache.parent} " in line
    assert cache.is_dir()
