"""Runs `train.train` as the command `python -m thyroid.train`."""

from thyroid.train.train import main

if __name__ == "__main__":
    raise SystemExit(main())
