"""Command `python -m thyroid.exchange`; its code is in `thyroid.label.exchange.command`."""

from thyroid.label.exchange.command import main

if __name__ == "__main__":
    raise SystemExit(main())
