"""Run `ingest.ingest` as the command `python -m thyroid.ingest`."""

from thyroid.ingest.ingest import main

if __name__ == "__main__":
    raise SystemExit(main())
