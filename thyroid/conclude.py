"""Command `python -m thyroid.conclude`; its code is in `thyroid.registry.conclude`."""

from thyroid.registry.conclude import main

if __name__ == "__main__":
    raise SystemExit(main())
