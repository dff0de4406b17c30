"""Several pods that examine new scans side by side, before the ingest that makes a data version of what they found."""
