"""Command `python -m thyroid.dicom`; its code is in `thyroid.ingest.dicom_names`."""

from thyroid.ingest.dicom_names import main

if __name__ == "__main__":
    raise SystemExit(main())
