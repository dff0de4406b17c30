"""The rows that shards leave in the store, until a data version has taken them up."""

import pandas as pd

from thyroid.data import tables
from thyroid.data.store import EXAMINED_PIECES, Store
from thyroid.ingest.examine import EXAMINATION

_ADDED = {"source": "string", "examined_by": "int64", "piece": "string"}


def leave(place: Store, source: str, rows: pd.DataFrame) -> None:
    """Leave the rows of some files as a piece, after their copies have been sent to the store.

    Files without a generation are left out, since a change of them could go unnoticed; the next run reads them again.

    Args:
        place: The store.
        source: Address of the scans.
        rows: Rows as `examine.examine` makes them.
    """
    settled = rows[rows["generation"].notna()]
    if not settled.empty:
        place.add_piece(EXAMINED_PIECES, place.send_copies(settled).assign(source=source, examined_by=EXAMINATION))


def left(place: Store | None, source: str) -> pd.DataFrame:
    """Return the rows that shards have left of files of a source, with the name of each row's piece.

    Rows of another `EXAMINATION` are left out.

    Args:
        place: The store; None for none, which holds no rows.
        source: Address of the scans.
    """
    rows = pd.DataFrame() if place is None else place.pieces(EXAMINED_PIECES)
    if rows.empty:
        return tables.frame([], {"path": "string", "domain": "string", **_ADDED})
    return rows[(rows["source"] == source) & (rows["examined_by"] == EXAMINATION)]
