"""`python -m thyroid.ingest`: the command of `ingest.ingest`."""

from thyroid.ingest.ingest import main

if __name__ == "__main__":
    raise SystemExit(main())
