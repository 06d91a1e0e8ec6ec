"""Shards to batches: which sample comes when, and how it gets onto the device."""
