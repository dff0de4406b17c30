"""Run `sweep.search` as the command `python -m thyroid.sweep`."""

from thyroid.sweep.search import main

if __name__ == "__main__":
    raise SystemExit(main())
