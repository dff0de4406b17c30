"""Command `python -m thyroid.register`; its code is in `thyroid.registry.register`."""

from thyroid.registry.register import main

if __name__ == "__main__":
    raise SystemExit(main())
