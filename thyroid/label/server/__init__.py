"""What the bench does for its pages: readers, the next frame, readings, and the HTTP routes."""
