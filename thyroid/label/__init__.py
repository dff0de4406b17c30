"""The labelling bench: people mark nodules in frames, and rois.csv, labels.csv and clinical.csv are written."""
