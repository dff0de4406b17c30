"""Pictures: decoded, de-identified, cut to the scan area or a region, and brought to a network's size."""
