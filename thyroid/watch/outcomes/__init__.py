"""Outcomes that became known after the decision, and sequential tests on them."""
