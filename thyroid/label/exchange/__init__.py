"""Readings that come from other programs, or go to them: COCO, and the XML of the public DDTI."""
