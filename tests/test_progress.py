"""Progress in a log, which is no terminal."""

import pytest

from thyroid import progress
from thyroid.train import checkpoints


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    monkeypatch.setattr(progress, "SHORT_SECONDS", 0.0)


def test_every_state_is_a_line_of_its_own(often, capfd):
    assert list(progress.bar("abc", 3, "ingest", "scan")) == ["a", "b", "c"]
    output = capfd.readouterr().err
    assert output.splitlines()[-1].startswith("ingest: 3 of 3 scans in 00:0")
    assert [line.split(" scans")[0] for line in output.splitlines()][-3:] == [f"ingest: {n} of 3" for n in (1, 2, 3)]
    assert "\r" not in output


def test_what_is_short_or_silenced_says_nothing(capfd):
    assert len(list(progress.bar(range(3), 3, "ingest", "scan"))) == 3
    with progress.silent():
        assert len(list(progress.bar(range(3), 3, "ingest", "scan"))) == 3
    assert capfd.readouterr().err == ""


def test_epochs_count_those_before_an_interruption(often, capfd):
    callback = checkpoints.ProgressBar("VGG16 fine-tuning")
    callback.set_params({"epochs": 5})
    callback.on_train_begin()
    for epoch in (3, 4):
        callback.on_epoch_begin(epoch)
        callback.on_epoch_end(epoch)
    callback.on_train_end()
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1].startswith("VGG16 fine-tuning: 5 of 5 epochs in ")
    assert not any("?epoch" in line for line in lines)
