"""Run the command of `evaluate.evaluate` as `python -m thyroid.evaluate`."""

from thyroid.evaluate.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main())
