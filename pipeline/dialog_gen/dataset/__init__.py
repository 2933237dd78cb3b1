"""A dialogues dataset on disk: its record, its folder, how shards get into it, and what proves that it is whole."""
