"""`python -m thyroid.deploy`: the command of `deploy.deploy`."""

from thyroid.deploy.deploy import main

if __name__ == "__main__":
    raise SystemExit(main())
