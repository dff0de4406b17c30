"""Which scans are in which shard."""

import random

import pytest

from thyroid.errors import InputError
from thyroid.shards import Shard


def test_every_scan_is_in_exactly_one_shard_and_the_shards_are_about_equally_large():
    addresses = [f"gs://bucket/scans/B_{number:04d}-0001-1.0.jpg" for number in range(4000)]
    parts = [{address for address in addresses if Shard(number, 8).has(address)} for number in range(1, 9)]
    assert sorted(address for part in parts for address in part) == addresses
    assert all(400 < len(part) < 600 for part in parts)


def test_the_order_of_the_listing_does_not_matter():
    addresses = [f"/scans/B_{number:03d}-0001-1.0.jpg" for number in range(100)]
    shuffled = random.Random(0).sample(addresses, 100)
    shard = Shard(2, 3)
    assert {address for address in shuffled if shard.has(address)} == {a for a in addresses if shard.has(a)}


def test_one_shard_has_every_scan_whatever_its_name():
    assert all(Shard(1, 1).has(name) for name in ("", "a\nb", "ä", "\udcff", "x" * 5000))


@pytest.mark.parametrize(
    ("number", "of", "said"),
    [(0, 3, "shard 0: give 1 to 3"), (4, 3, "shard 4"), (1, 0, "shards 0: give 1 to 64"), (1, 65, "shards 65")],
)
def test_numbers_out_of_range(number, of, said):
    with pytest.raises(InputError, match=said):
        Shard(number, of)
