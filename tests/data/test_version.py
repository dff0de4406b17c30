"""A data version in memory answers as the functions of `tables` do, and decodes every image once at each size."""

from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import write_scan
from tests.model.test_inputs import colour_scan, table_of
from thyroid.data import tables, version
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.imaging import images


@pytest.mark.parametrize("domain", tables.DOMAINS)
def test_it_has_the_images_of_its_tables(cropped, domain):
    data = DataVersion.read(cropped)
    for split in (None, *tables.SPLITS):
        table = data.examples(domain, split)
        expected = tables.examples_of(data.scans, data.regions, domain)
        if split is not None:
            expected = expected[expected["split"] == split]
        assert table["file"].tolist() == [str(data.images / name) for name in sorted(expected["name"])]
    assert (data.margin, data.domains) == (data.facts.margin, data.facts.domains)
    assert set(data.test_scans["split"]) == {"test"}
    table = data.examples(domain, "test")
    np.testing.assert_array_equal(data.pixels(table, 24), version.decode(table, 24))


def test_before_crop_it_has_neither_margin_nor_domains(cropped):
    data = DataVersion.read(cropped.parent / "ingested")
    for name in ("margin", "domains"):
        with pytest.raises(InputError, match=r"thyroid\.crop"):
            getattr(data, name)


def test_the_fingerprint_is_that_of_what_later_steps_read(cropped):
    data = DataVersion.read(cropped)
    data.require_fingerprint(DataVersion.read(cropped).fingerprint)
    other = replace(data, scans=data.scans.assign(split="train"))
    with pytest.raises(InputError, match=str(data.folder)):
        other.require_fingerprint(data.fingerprint)


def test_an_unknown_domain_is_refused(cropped):
    with pytest.raises(InputError, match="elsewhere"):
        DataVersion.read(cropped).examples("elsewhere")


def test_what_was_decoded_is_remembered(tmp_path, monkeypatch):
    table = table_of([*(write_scan(tmp_path / f"{i}.jpg", seed=i) for i in range(4)), colour_scan(tmp_path / "c.jpg")])
    asked = []

    def watched(rows, size, budget, plain=version.decode):
        asked.append((len(rows), size, budget))
        return plain(rows, size, budget)

    monkeypatch.setattr(version, "decode", watched)
    decode = version.PixelCache(10_000)
    grey = decode(table.head(3), 32)
    assert grey.shape == (3, 32, 32, 1)
    np.testing.assert_array_equal(decode(table.iloc[[2, 0]], 32), grey[[2, 0]])
    every = decode(table, 32)
    assert every.shape == (5, 32, 32, 3)
    np.testing.assert_array_equal(every[:3], images.rgb(grey))
    decode(table, 48)
    assert asked == [(3, 32, 10_000), (2, 32, 10_000 - 3 * 32 * 32), (5, 48, 784)]
