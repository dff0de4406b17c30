"""The first step: scans in, one data version out."""
