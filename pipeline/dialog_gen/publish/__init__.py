"""Sharing a dataset: merged shards, other formats, the Hub, and images that are fetched again."""
