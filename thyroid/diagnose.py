"""Command `python -m thyroid.diagnose`; its code is in `thyroid.train.diagnose`."""

from thyroid.train.diagnose import main

if __name__ == "__main__":
    raise SystemExit(main())
