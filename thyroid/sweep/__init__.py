"""The hyper-parameter search, which finds the settings of a training."""
