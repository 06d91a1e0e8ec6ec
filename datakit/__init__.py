"""Public image collections to training-ready WebDataset shards."""

__version__ = "0.1.0"
