"""Which sonographic descriptors the winner can tell: fitted, audited and locked before a test image is read."""
