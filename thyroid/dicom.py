"""`python -m thyroid.dicom`: see `ingest.dicom_names`."""

from thyroid.ingest.dicom_names import main

if __name__ == "__main__":
    raise SystemExit(main())
