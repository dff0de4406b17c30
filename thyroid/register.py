"""`python -m thyroid.register`: see `registry.register`."""

from thyroid.registry.register import main

if __name__ == "__main__":
    raise SystemExit(main())
