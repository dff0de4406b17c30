"""`python -m thyroid.train`: the command of `train.train`."""

from thyroid.train.train import main

if __name__ == "__main__":
    raise SystemExit(main())
