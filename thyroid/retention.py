"""Command `python -m thyroid.retention`; its code is in `thyroid.registry.retention`."""

from thyroid.registry.retention import main

if __name__ == "__main__":
    raise SystemExit(main())
