"""Publishing a dataset: merged shards, export formats, the Hub, and images that are fetched again.

compact.py      shards merged into larger ones
export.py       a dataset in another format; formats/ has one file per format
push.py         a dataset to the Hub; hub.py talks to it, card.py writes the dataset card from card_data.py
pull.py         a dataset from the Hub
rehydrate.py    images put back into a dataset without them; refetch.py restores one image
"""
