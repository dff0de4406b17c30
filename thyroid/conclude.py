"""`python -m thyroid.conclude`: see `registry.conclude`."""

from thyroid.registry.conclude import main

if __name__ == "__main__":
    raise SystemExit(main())
