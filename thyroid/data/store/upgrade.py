"""The upgrade of a store of older code."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from thyroid import atomic, errors
from thyroid.data import tables
from thyroid.data.store.files import sums
from thyroid.data.store.names import CROPPED, EXAMINED, LINKS, MEMORY, REMEMBERED, SEALED, unnamed
from thyroid.records.data import DataRecord

log = logging.getLogger(__name__)


def upgrade(home: Path, versions: Sequence[Path]) -> None:
    """Add what versions of older code lack: the cohort of their source, one memory for all sources, and checksums.

    If it is killed at any moment, the next upgrade finishes it. A version with a damaged table stays as it is and is
    skipped from then on. The caller must hold the store's lock.

    Args:
        home: Folder of the store.
        versions: Folders of its whole data versions, oldest first.
    """
    memory = tables.frame([], REMEMBERED)
    for folder in versions:
        try:
            content = json.loads((folder / tables.FACTS).read_text())
            scans, regions, *_, own = (
                pd.read_parquet(folder / name) for name in (*tables.TABLES, EXAMINED, LINKS, MEMORY)
            )
            if tables.digest(scans, regions) != content["digest"]:
                raise ValueError("its tables are not those of its digest")
            cohort = content.get("cohort") or unnamed(content["source"])
            whole = {**content, "cohort": cohort, "files": {}}
            facts = None if tables.sealed(folder) else DataRecord.parse(whole, tables.FACTS, "ignore")
            if "cohort" in own:  # an earlier upgrade was killed before it wrote data.json
                own = own[own["cohort"] == cohort]
        except Exception as error:  # damaged files raise many kinds of errors in pyarrow
            log.info(f"{folder}: damaged ({errors.one_line(error)[:200]}); skipped")
            continue
        own = own.assign(cohort=cohort)[list(REMEMBERED)].astype(REMEMBERED)
        memory = pd.concat([memory[memory["cohort"] != cohort], own], ignore_index=True)
        if facts is None:
            continue
        atomic.write_bytes(folder / MEMORY, memory.to_parquet(index=False))
        tables.write_facts(folder, facts.model_copy(update={"files": sums(folder)}))
    # crops of older code are not used, and its table does not record the margins
    (home / CROPPED).unlink(missing_ok=True)
    (home / SEALED).touch()
    atomic.flush(home)
