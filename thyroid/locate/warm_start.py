"""Lets the final head start from the champion's locator, if that saw the same maps and no frame that judges it."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thyroid.data import overlap
from thyroid.data.version import DataVersion
from thyroid.locate.maps import Extractor
from thyroid.locate.options import LocateOptions
from thyroid.model import locator
from thyroid.model.artefact import Artefact, load_keras
from thyroid.registry import changes
from thyroid.registry.registry import Registry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Champion:
    """A champion with a locator.

    Attributes:
        version: Its version in the registry.
        folder: Folder of its artefact.
        sha256: SHA-256 of its locator's Keras file.
    """

    version: int
    folder: Path
    sha256: str


def find(options: LocateOptions) -> Champion | None:
    """Return the champion that the warm recipe may start from. Otherwise log the reason and return None.

    Args:
        options: Options of the step, with the registry.

    Raises:
        InputError: The champion's artefact is damaged.
    """
    if options.recipe != "warm" or not options.registry:
        return None
    number = options.champion or Registry(options.registry).read_aliases().get("champion", 0)
    if not number:
        log.info("locator: there is no champion to start from")
        return None
    folder = Registry(options.registry).find(str(number))
    artefact = Artefact.verify(folder)
    if artefact.record.locator is None:
        log.info(f"locator: champion {number} has none to start from")
        return None
    return Champion(number, folder, artefact.record.files[locator.KERAS])


def head_of(champion: Champion, options: LocateOptions, data: DataVersion, extractor: Extractor) -> list[Any] | None:
    """Return the weights of the head of the champion's locator. If that would not be fair, log why and return None.

    Args:
        champion: The champion.
        options: Options of the step, with the registry.
        data: Data version.
        extractor: Computes the maps that the head would see.
    """
    judging = data.used.query("split != 'train'").assign(cohort=data.facts.cohort)
    seen = overlap.find(options.registry, changes.scans_of(champion.folder).query("split == 'train'"), judging)
    name = f"champion {champion.version}"
    if seen.scans or seen.problem:
        reason = seen.problem or f"it learnt from {seen.scans} scans that now judge it ({seen.describe()})"
        log.info(f"locator: does not start from {name}: {reason}")
        return None
    network = load_keras(champion.folder / locator.KERAS)
    if not _same_maps(network, extractor.network):
        log.info(f"locator: does not start from {name}: its head saw other maps")
        return None
    log.info(f"locator: starts from that of {name}")
    weights: list[Any] = network.get_layer("head").get_weights()
    return weights


def _same_maps(champion: Any, frozen: Any) -> bool:
    """Return whether both networks have the same projections of the same body."""
    names = [layer.name for layer in frozen.layers if layer.name.startswith("projection")]
    have = {layer.name for layer in champion.layers}
    if champion.input_shape != frozen.input_shape or not set(names) <= have:
        return False
    pairs = zip(frozen.get_weights(), champion.get_weights(), strict=False)  # the frozen part comes first
    return all(one.shape == other.shape and np.array_equal(one, other) for one, other in pairs)
