"""Executors: they decide where the shards of a run are processed."""
