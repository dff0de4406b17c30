"""Reads the folder of the step `locate`: the boxes of the test frames, their crops, and the locator."""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from thyroid.data import tables
from thyroid.data.filenames import CLASSES
from thyroid.data.version import DataVersion
from thyroid.errors import InputError
from thyroid.model import locator
from thyroid.model.artefact import sha256
from thyroid.records.locate import BOXES, RECORD, LocateRecord

AUTOMATIC = "automatic"
"""Name of the domain of frames as they come: the automatic crop, or the full frame for a model of full frames."""
DOMAIN_NAMES = tables.DOMAIN_NAMES | {AUTOMATIC: "frames as they come"}
"""Names of all domains for people."""

PICTURES = ("sheet", "calibration", "risk_coverage")
"""Pictures that `locate` draws, without their suffix."""

_COLUMNS = {"path", "split", "rank", "unsure", "source", "crop_path", "crop_sha256"}
_AGAIN = "run `python -m thyroid.locate` again"


@dataclass(frozen=True, eq=False)
class AutomaticBoxes:
    """The output of `locate` for a data version.

    Attributes:
        folder: Its folder.
        record: Content of its locate.json.
        data: The data version.
        proposals: Content of boxes.parquet; None if there is no locator.
    """

    folder: Path
    record: LocateRecord
    data: DataVersion
    proposals: pd.DataFrame | None

    @classmethod
    def read(cls, folder: Path, data: DataVersion) -> "AutomaticBoxes":
        """Read and check the output of `locate`.

        Args:
            folder: Its folder.
            data: The data version that is evaluated.

        Raises:
            InputError: The folder is not an output of `locate`, is of another data version, margin or split, or a file
                is missing or was changed.
        """
        try:
            record = LocateRecord.read(folder / RECORD)
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{folder}: not an output of locate ({RECORD} is missing)") from None
        if record.data_digest != data.digest:
            raise InputError(f"{folder / RECORD}: made for another data version than {data.folder}; {_AGAIN}")
        if record.locator is None:
            return cls(folder, record, data, None)
        if record.margin != data.margin:
            raise InputError(
                f"{folder / RECORD}: field margin is {record.margin}, but {data.folder} was cropped with "
                f"{data.margin}; {_AGAIN}"
            )
        _verify(folder, record)
        found = cls(folder, record, data, _proposals(folder / BOXES))
        # a frame that the locator learnt from would flatter it
        if not ((found.boxes["source"] == "final") & (found.boxes["split"] == "test")).all():
            raise InputError(f"{folder / BOXES}: made with other splits than those of {data.folder}; {_AGAIN}")
        return found

    @cached_property
    def boxes(self) -> pd.DataFrame:
        """Best box of every test frame, in the order of the table.

        Raises:
            RuntimeError: There is no locator.
        """
        if self.proposals is None:
            raise RuntimeError(f"{self.folder}: there is no locator; see `problem`")
        table = self.proposals
        chosen = (table["rank"] == 0) & table["path"].isin(self.data.test_scans["path"])
        return table[chosen].reset_index(drop=True)

    @property
    def problem(self) -> str | None:
        """Why automatic boxes cannot be measured, in words; None if they can."""
        if self.record.locator is None:
            return self.record.skipped or "the step locate gave no reason"
        if self.frames.empty:
            return "no test frame has a marked nodule"
        if self.frames["label"].nunique() < len(CLASSES):
            return "the test frames with a marked nodule are of one class only"
        return None

    @cached_property
    def frames(self) -> pd.DataFrame:
        """The test frames with a marked nodule, as `DataVersion.examples` gives them."""
        frames = self.data.examples("normal", "test")
        return frames[frames["path"].isin(self.data.regions["path"])].reset_index(drop=True)

    @cached_property
    def _crops(self) -> pd.DataFrame:
        """The same frames, but with the automatic crop in the columns name, sha256 and file.

        Raises:
            InputError: A frame has no crop, or a crop is missing or was changed.
        """
        known = self.boxes.set_index("path")
        known = known[known["crop_path"].notna()]
        if without := set(self.frames["path"]) - set(known.index):
            raise InputError(f"{self.folder / BOXES}: {len(without)} test frames have no crop; {_AGAIN}")
        found = known.loc[self.frames["path"]]
        files = [self.folder / name for name in found["crop_path"]]
        for file, digest in zip(files, found["crop_sha256"], strict=True):
            _check(self.folder, file, digest)
        return self.frames.assign(
            name=found["crop_path"].to_numpy(),
            sha256=found["crop_sha256"].to_numpy(),
            file=[str(file) for file in files],
        )

    def examples(self, train_domain: str) -> pd.DataFrame:
        """Return the test frames with a marked nodule as a model sees them that gets nothing but the frame.

        Args:
            train_domain: Domain that the model was trained on. A model of crops sees the crop of the best box, with the
                margin of the data version; a model of full frames sees the frame.

        Returns:
            One row per frame with the columns of `DataVersion.examples`. The name of an automatic crop is relative to
            the folder of `locate`.

        Raises:
            InputError: A frame has no crop, or a crop is missing or was changed.
        """
        return (self._crops if train_domain == "cropped" else self.frames).copy()

    def copy_locator(self, artefact: Path) -> None:
        """Copy the locator's files into the folder of an artefact, under their names."""
        for name in locator.FILES:
            (artefact / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / name, artefact / name)

    def copy_pictures(self, folder: Path) -> None:
        """Copy the pictures that `locate` drew as locate-NAME.png; those that it did not draw are left out."""
        for name in PICTURES:
            if (self.folder / f"{name}.png").is_file():
                shutil.copyfile(self.folder / f"{name}.png", folder / f"locate-{name}.png")


def _verify(folder: Path, record: LocateRecord) -> None:
    """Check that all files which locate.json lists, and those that are needed, are as they were written."""
    for name in dict.fromkeys((BOXES, *locator.FILES, *record.files)):
        _check(folder, folder / name, record.files.get(name))


def _check(folder: Path, file: Path, digest: str | None) -> None:
    if not file.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{file}: outside the folder of locate; {_AGAIN}")
    if not file.is_file():
        raise InputError(f"{file}: missing; {_AGAIN}")
    if sha256(file) != digest:
        raise InputError(f"{file}: not as locate wrote it (sha256 differs); {_AGAIN}")


def _proposals(file: Path) -> pd.DataFrame:
    """Read the table of proposals."""
    table = pd.read_parquet(file)
    if missing := sorted(_COLUMNS - set(table)):
        raise InputError(f"{file}: column {missing[0]} is missing; {_AGAIN}")
    if table.loc[table["rank"] == 0, "path"].duplicated().any():
        raise InputError(f"{file}: a frame has two best boxes; {_AGAIN}")
    return table
