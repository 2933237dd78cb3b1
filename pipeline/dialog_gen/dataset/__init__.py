"""A dialogue dataset on disk: the record, the folder, writing of shards, verification, and upgrades."""
