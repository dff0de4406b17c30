"""Command `python -m thyroid.pool`; its code is in `thyroid.validate.share.command`."""

from thyroid.validate.share.command import main

if __name__ == "__main__":
    raise SystemExit(main())
