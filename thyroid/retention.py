"""`python -m thyroid.retention`: see `registry.retention`."""

from thyroid.registry.retention import main

if __name__ == "__main__":
    raise SystemExit(main())
