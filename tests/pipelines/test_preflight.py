"""Buckets that a run cannot use end it before its first step."""

import pytest

from pipelines import __main__ as cli
from thyroid import storage


@pytest.fixture
def refused(scans, tmp_path, capsys):
    """What a run says that has a place in a bucket."""

    def run(option: str, address: str) -> str:
        given = {"--scans": str(scans), "--output": str(tmp_path / "out")} | {option: address}
        assert cli.main(["run", *(word for pair in given.items() for word in pair)]) == 2
        out, error = capsys.readouterr()
        assert (out, error.count("\n")) == ("", 1)
        assert error.startswith("error: ")
        assert address.split("/")[2] in error
        assert not (tmp_path / "out").exists()
        return error

    return run


@pytest.mark.parametrize("option", ["--scans", "--store", "--registry"])
def test_a_bucket_that_does_not_exist(refused, bucket, option):
    scheme, _, name = bucket.address("").rstrip("/").partition("://")
    assert f"there is no bucket none-{name}" in refused(option, f"{scheme}://none-{name}/a/prefix")


@pytest.mark.parametrize("option", ["--scans", "--store"])
def test_a_bucket_that_is_not_for_this_account(refused, bucket, option):
    bucket.proxy.rule = lambda method, path: "403"
    assert "no permission" in refused(option, bucket.address("prefix"))


def test_a_bucket_that_can_only_be_read_holds_no_store(refused, bucket):
    bucket.proxy.rule = lambda method, path: None if method == "GET" else "403"
    assert "no permission" in refused("--store", bucket.address("store"))


def test_without_credentials_nothing_is_waited_for(refused, s3, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "no credentials" in refused("--scans", s3.address("scans"))


def test_what_may_be_used_passes_and_nothing_stays_there(bucket, scans, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pipelines.run._run", lambda *given: None)
    places = [word for name in ("scans", "store", "registry") for word in (f"--{name}", bucket.address(name))]
    assert cli.main(["run", "--output", str(tmp_path / "out"), *places]) == 0
    assert storage.at(bucket.address()).entries() == []
