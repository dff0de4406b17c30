"""The part of the champion gate that live pictures decide."""
