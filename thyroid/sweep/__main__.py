"""`python -m thyroid.sweep`: the command of `sweep.search`."""

from thyroid.sweep.search import main

if __name__ == "__main__":
    raise SystemExit(main())
