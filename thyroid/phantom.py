"""`python -m thyroid.phantom`: see `imaging.phantom`."""

from thyroid.imaging.phantom import main

if __name__ == "__main__":
    raise SystemExit(main())
