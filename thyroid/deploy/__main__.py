"""Run `deploy.deploy` as the command `python -m thyroid.deploy`."""

from thyroid.deploy.deploy import main

if __name__ == "__main__":
    raise SystemExit(main())
