"""The records that leave a step: one typed model for every JSON file that others read."""
