"""Command `python -m thyroid.phantom`; its code is in `thyroid.imaging.phantom`."""

from thyroid.imaging.phantom import main

if __name__ == "__main__":
    raise SystemExit(main())
