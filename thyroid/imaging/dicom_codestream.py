"""Checks the header of a compressed frame before any pixel of it is decoded.

Damaged or hostile code streams can cost a decoder minutes and gigabytes.
"""

from thyroid.imaging.dicom_picture import DicomError

_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_MOST_SCANS = 8
_MOST_TILES = 1024
_MOST_LAYERS = 64
_LEAST_PRECINCT = 5  # binary logarithm of the side in pixels


def encoded_shape(frame: bytes) -> tuple[int, int, int]:
    """Return height, width and samples per pixel from the header of a JPEG, JPEG-LS or JPEG 2000 code stream.

    Raises:
        DicomError: There is no header, or it has values that no encoder of DICOM files writes.
    """
    if frame[:4] == b"\xff\x4f\xff\x51":  # SIZ directly follows SOC (ISO 15444-1 A.5.1)
        width, height, left, top, tile_width, tile_height = (
            int.from_bytes(frame[at : at + 4], "big") for at in range(8, 32, 4)
        )
        tiles = -(-width // max(1, tile_width)) * -(-height // max(1, tile_height))
        if tiles > _MOST_TILES or not _sound_jpeg2000(frame):
            raise DicomError("damaged", "damaged DICOM: its JPEG 2000 image is cut into too many parts")
        return height - top, width - left, int.from_bytes(frame[40:42], "big")
    place = 2 if frame[:2] == b"\xff\xd8" else len(frame)
    while place + 10 <= len(frame) and frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker in _START_OF_FRAME:
            if marker in _PROGRESSIVE or frame.count(b"\xff\xda") > _MOST_SCANS:
                raise DicomError("damaged", "damaged DICOM: its JPEG image is of a kind that DICOM does not have")
            height, width = (int.from_bytes(frame[at : at + 2], "big") for at in (place + 5, place + 7))
            return height, width, frame[place + 9]
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker in (0x01, *range(0xD0, 0xD9)):  # markers without a length
            place += 2
        else:
            place += 2 + max(2, int.from_bytes(frame[place + 2 : place + 4], "big"))
    raise DicomError("damaged", "damaged DICOM: its compressed image has no header")


def _sound_jpeg2000(frame: bytes) -> bool:
    """Return whether the coding styles in all headers of a JPEG 2000 code stream are such as encoders write.

    Precincts of a few pixels, or thousands of layers, cost gigabytes in a file of some hundred bytes (ISO 15444-1
    A.6.1).
    """
    place, start = 2, 0
    while place + 4 <= len(frame):
        marker, length = frame[place : place + 2], int.from_bytes(frame[place + 2 : place + 4], "big")
        if marker == b"\xff\x93":  # SOD: data until the end of the tile-part
            size = int.from_bytes(frame[start + 6 : start + 10], "big")
            if size < 14:  # 0: until the end of the code stream
                return True
            place = start + size
            continue
        if marker == b"\xff\xd9":
            return True
        if marker == b"\xff\x90":  # SOT
            start = place
        if marker in (b"\xff\x52", b"\xff\x53"):  # COD, or COC, whose component number takes one byte
            style = place + (4 if marker == b"\xff\x52" else 5)
            levels = style + (5 if marker == b"\xff\x52" else 1)
            layers = int.from_bytes(frame[style + 2 : style + 4], "big") if marker == b"\xff\x52" else 1
            precincts = frame[levels + 5 : place + 2 + length] if frame[style : style + 1] and frame[style] & 1 else b""
            if layers > _MOST_LAYERS or any(min(size & 15, size >> 4) < _LEAST_PRECINCT for size in precincts):
                return False
        place += 2 + max(2, length)
    return True
