"""The sonographic descriptors and TI-RADS points of an answer."""
