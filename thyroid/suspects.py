"""Command `python -m thyroid.suspects`; its code is in `thyroid.label.suspects`."""

from thyroid.label.suspects import main

if __name__ == "__main__":
    raise SystemExit(main())
