"""Reads pictures of the scans, and the sizes of those in a bucket when they are first needed.

A size that was read is kept in the user's cache by the generation of its object, so that a bench that is started again
downloads nothing to know it.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from thyroid import atomic, errors, storage
from thyroid.imaging import images
from thyroid.ingest import examine
from thyroid.ingest.listing import ListedFile
from thyroid.storage import cache

_HEADER = 1 << 16
"""Bytes of a JPEG from which its size is read; the whole file is read if they are too few."""
_FILE = "sizes.json"

Place = storage.Folder | storage.Bucket
Size = tuple[int, int]
"""Width and height in pixels, upright."""
_KEPT = TypeAdapter(dict[str, Size])


class PictureError(ValueError):
    """A picture vanished or cannot be used. The message is the reason and names no file."""


class Sizes:
    """The sizes of the JPEG objects of a bucket. Its methods may be called from several threads.

    Args:
        place: The bucket. A folder has none of them.
    """

    def __init__(self, place: Place) -> None:
        """Take the sizes that the user's cache knows."""
        self._place, self._guard = place, threading.Lock()
        self._known: dict[str, Size] = {}
        self._failed: dict[str, str] = {}
        self._kept: set[str] = set()
        if isinstance(place, storage.Bucket):
            with contextlib.suppress(OSError, ValidationError), self._folder() as folder:
                self._known = _KEPT.validate_json((folder / _FILE).read_bytes())
            self._kept = set(self._known)

    def of(self, file: ListedFile) -> Size:
        """Return the size of an object, which is read unless it is known.

        Raises:
            PictureError: The picture is damaged or vanished. It is not read again unless it changes.
            InputError: The bucket cannot be read.
        """
        key = _key(file)
        with self._guard:
            if key in self._failed:
                raise PictureError(self._failed[key])
            if key in self._known:
                return self._known[key]
        try:
            found = size(self._place, file)
        except (OSError, ValueError) as error:
            with self._guard:
                self._failed[key] = reason(error)
            raise PictureError(reason(error)) from None
        return self.learn(file, found)

    def learn(self, file: ListedFile, found: Size) -> Size:
        """Keep the size of an object that was read for another reason, unless one is known, and return what is known.

        Args:
            file: The object.
            found: Its size.
        """
        with self._guard:
            return self._known.setdefault(_key(file), found)

    def read(self, files: Sequence[ListedFile]) -> dict[str, str]:
        """Read the sizes of several objects at once, and return why some cannot be used, by their names.

        Raises:
            InputError: The bucket cannot be read.
        """

        def look(file: ListedFile) -> str:
            try:
                self.of(file)
            except PictureError as error:
                return str(error)
            return ""

        with self._guard:
            unknown = [file for file in files if _key(file) not in self._known]
        if not unknown:
            return {}
        with ThreadPoolExecutor(storage.client.WORKERS) as pool:
            found = zip(unknown, pool.map(look, unknown), strict=True)
            return {file.relative: why for file, why in found if why}

    def keep(self, files: Sequence[ListedFile]) -> None:
        """Write the sizes of the objects that there are to the user's cache, if there are new ones."""
        if not isinstance(self._place, storage.Bucket):
            return
        keys = {_key(file) for file in files if file.entry is not None}
        with self._guard:
            self._failed = {key: why for key, why in self._failed.items() if key in keys}
            known = {key: found for key, found in self._known.items() if key in keys}
            if known.keys() <= self._kept:
                return
            self._kept = set(known)
        with contextlib.suppress(OSError), self._folder() as folder, atomic.replacing(folder / _FILE) as temporary:
            temporary.write_bytes(_KEPT.dump_json(known))

    def _folder(self) -> contextlib.AbstractContextManager[Path]:
        return cache.folder_for(hashlib.sha256(f"{self._place.address}\0sizes".encode()).hexdigest()[:32])


def _key(file: ListedFile) -> str:
    """Return a text for one state of an object, which does not name it: a name may contain a patient's."""
    return hashlib.sha256(os.fsencode(f"{file.relative}\0{file.entry and file.entry.generation}")).hexdigest()[:32]


def reason(error: Exception) -> str:
    """Return why a picture cannot be used, without its name."""
    return (error.strerror if isinstance(error, OSError) else errors.one_line(error)) or "cannot be read"


def size(place: Place, file: ListedFile) -> Size:
    """Return the size of a JPEG, from its header where that is enough.

    Raises:
        ValueError: `ingest` could not use the file.
        OSError: The file vanished or cannot be read.
        InputError: The bucket cannot be read.
    """
    if file.local is not None:
        examine.check_file(Path(file.local), file)
        with Path(file.local).open("rb") as opened:
            header = opened.read(_HEADER)
        try:
            return images.size(header)
        except images.SizeError:
            raise
        except ValueError:  # a long header: metadata before the size
            pass
    return images.size(read(place, file))


def check_object(file: ListedFile) -> None:
    """Check what a listing says about an object.

    Raises:
        ValueError: It is empty or too large.
    """
    assert file.entry is not None
    limit = _limit(file)
    if file.entry.size > limit:
        raise ValueError(f"file of {file.entry.size:,} bytes is larger than the limit of {limit:,}")
    if not file.entry.size:
        raise ValueError("empty file (0 bytes)")


def read(place: Place, file: ListedFile) -> bytes:
    """Return a file's bytes as they are now.

    Raises:
        ValueError: It is empty, too large, or not a regular file within the folder of scans.
        OSError: It vanished or cannot be read.
        InputError: The bucket cannot be read.
    """
    if file.local is not None:
        examine.check_file(Path(file.local), file)
        if file.row is None:
            return images.read(file.local)
        from thyroid.imaging import dicom  # imported late: most scans are JPEGs

        return dicom.read_file(file.local)
    if file.entry is not None:
        check_object(file)
    data, generation = place.read(file.relative)
    if generation == storage.ABSENT:
        raise FileNotFoundError("the file does not exist any more")
    if not data:
        raise ValueError("empty file (0 bytes)")
    return data


def _limit(file: ListedFile) -> int:
    if file.row is None:
        return images.MAX_BYTES
    from thyroid.imaging import dicom

    return dicom.MAX_BYTES
