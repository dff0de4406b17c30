"""What a candidate behind the champion would have decided otherwise."""
