"""`python -m thyroid.evaluate`: the command of `evaluate.evaluate`."""

from thyroid.evaluate.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main())
