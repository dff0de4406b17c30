"""Thyroid nodule classification from ultrasound: ingest, crop, train, evaluate, register, serve. Research use only."""

RESEARCH_USE_ONLY = "Research use only. Not a medical device; not for diagnosis or treatment decisions."
