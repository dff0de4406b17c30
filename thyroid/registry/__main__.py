"""Run `registry.registry` as the command `python -m thyroid.registry`."""

from thyroid.registry.registry import main

if __name__ == "__main__":
    raise SystemExit(main())
