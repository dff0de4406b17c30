"""What a candidate made of the champion's live pictures, kept beside its version."""
