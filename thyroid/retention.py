"""Command `python -m thyroid.retention`; its code is in `thyroid.label.retention.command`."""

from thyroid.label.retention.command import main

if __name__ == "__main__":
    raise SystemExit(main())
