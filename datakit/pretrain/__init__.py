"""Masked autoencoders, and what trains them on shards."""
