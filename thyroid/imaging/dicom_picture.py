"""What is read of a DICOM file, and why a file cannot be used; without DICOM's libraries, which only `dicom` needs."""

from dataclasses import dataclass

from thyroid.imaging import images


class DicomError(ValueError):
    """A file that cannot be used; the message says why in words and holds nothing of its content but technical facts.

    Attributes:
        code: one word, for programs that say it in other words: damaged, modality, pixels, size, frame, burned_in.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Picture:
    """One frame.

    Attributes:
        pixels: uint8 [rows, columns, 3], RGB, black outside the ultrasound regions or the scan area.
        frame: its number, from 1 as DICOM counts.
        frames: how many the file has.
        instance: number of the file in its series; 0 where it has none.
        patient: the file's patient id, to be hashed and dropped; "" from `dicom_guard.read`, whose callers have no use for it.
        regions: whether the file says where its tissue is; if not, the picture alone told, and text close to it may be left.
    """

    pixels: images.Pixels
    frame: int
    frames: int
    instance: int
    patient: str
    regions: bool
