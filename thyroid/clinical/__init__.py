"""Clinical columns beside the images: read, encoded, explored, and fused with a network's answer."""
