"""`python -m thyroid.diagnose`: see `train.diagnose`."""

from thyroid.train.diagnose import main

if __name__ == "__main__":
    raise SystemExit(main())
