"""Descriptions of machines from what other tools write."""
