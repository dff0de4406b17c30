"""`python -m thyroid.registry`: the command of `registry.registry`."""

from thyroid.registry.registry import main

if __name__ == "__main__":
    raise SystemExit(main())
