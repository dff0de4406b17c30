"""Reads, encodes and explores clinical columns, and fuses them with a network's answer."""
