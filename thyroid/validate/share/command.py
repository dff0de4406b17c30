"""Command `python -m thyroid.pool`: figures over several sites, from the counts that they shared.

python -m thyroid.pool --keys DIR --output DIR a.json b.json ...
"""

from pathlib import Path

from thyroid import command
from thyroid.errors import InputError


def run(*files: Path, keys: Path, output: Path, model: str = "") -> None:
    """Pool the counts that several sites shared of a model, and write report.html and pool.json.

    Args:
        files: Files that python -m thyroid.validate --share wrote, one per site.
        keys: Folder with the sites' public keys: SITE.pub.
        output: Folder to write to.
        model: SHA-256 of the model.json that the files must be about; if not given, that of most files.
    """
    try:
        from thyroid.validate.share import pool
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != "statsmodels":
            raise
        message = "statsmodels is not installed here; `make pool` installs it, and the image validate has it"
        raise InputError(message) from None
    pool.pool(files, keys, output, model=model)


main = command.main("python -m thyroid.pool", run)
