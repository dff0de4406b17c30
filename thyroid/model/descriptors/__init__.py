"""Which sonographic descriptors a nodule shows, by the features that training left frozen."""
