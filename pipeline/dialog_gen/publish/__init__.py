"""Publishing datasets: merges shards, exports to other formats, pushes to and pulls from the Hub, restores images.

merge.py        joins datasets of one configuration
compact.py      merges shards into larger ones
export.py       exports a dataset; formats/ has one file per format
push.py         uploads a dataset to the Hub; hub.py is the client; commit.py fills a repository, bucket.py a bucket
card.py         makes the dataset card from card_data.py (languages.py, filled_columns.py) and thumbnails.py
pull.py         downloads a dataset from the Hub
notes.py        run.json, gates.json and images.json of a dataset made of others
rehydrate.py    puts images back into a dataset without images; refetch.py restores one image
"""
