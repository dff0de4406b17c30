"""One shard of ingest: examine a share of the new scans, and leave copies and rows in the store.

Any number of shards work side by side without the store's lock. The ingest that follows takes their rows up as known,
and examines itself what a shard that was killed has not got to.
"""

import logging

from thyroid import storage
from thyroid.data.store import Store
from thyroid.ingest import examine
from thyroid.ingest.history import History
from thyroid.ingest.ingest import Request
from thyroid.ingest.options import IngestOptions
from thyroid.ingest.shards import pieces
from thyroid.shards import Shard, require_store

log = logging.getLogger(__name__)


def examine_shard(options: IngestOptions, shard: Shard) -> None:
    """Examine the new scans of one shard, and leave their copies and rows in the store.

    Args:
        options: The scans, and how to read them. How patients are dealt to splits does not matter here.
        shard: The shard.

    Raises:
        InputError: There is no store, the scans or the store cannot be read, or there are DICOM files and no key in the
            environment.
    """
    require_store(options.store)
    place = Store(options.store)
    place.pull(whole=False)
    source = storage.at(options.scans).address
    listed = Request.read(options).list_files(place.address)
    files = [file for file in listed if shard.has(f"{file.root}/{file.relative}")]
    history = History.read(place, source)
    known = examine.known(files, history.last, pieces.left(place, source), history.there)
    paths = set(known["path"].tolist())
    new = [file for file in files if file.path not in paths]
    log.info(f"shard {shard.number} of {shard.of}: {len(new)} of {len(files)} scans are new")
    for batch in examine.batches(new, place.folder):
        pieces.leave(place, source, batch)
