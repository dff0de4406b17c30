"""The picture that is read from a DICOM file, and the error of an unusable file.

This module needs none of DICOM's libraries; only `dicom` does.
"""

from dataclasses import dataclass

from thyroid.imaging import images


class DicomError(ValueError):
    """A file that cannot be used.

    The message says why in words and contains nothing of the file but technical facts.

    Attributes:
        code: One word for programs that word the message themselves: damaged, modality, pixels, size, frame or
            burned_in.
    """

    def __init__(self, code: str, message: str) -> None:
        """Keep the code next to the message."""
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Picture:
    """One frame of a DICOM file.

    Attributes:
        pixels: uint8 [rows, columns, 3], RGB, black outside the ultrasound regions or the scan area.
        frame: Number of the frame, from 1 as DICOM counts.
        frames: Number of frames in the file.
        instance: Number of the file in its series; 0 if it has none.
        patient: Patient id of the file, to be hashed and dropped; "" from `dicom_guard.read`, whose callers do not need
            it.
        regions: Whether the file says where its tissue is. If not, the tissue was found in the picture alone, and
            text close to it may remain.
    """

    pixels: images.Pixels
    frame: int
    frames: int
    instance: int
    patient: str
    regions: bool
