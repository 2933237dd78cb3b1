"""Publishing datasets: merges shards, exports to other formats, pushes to and pulls from the Hub, restores images.

compact.py      merges shards into larger ones
export.py       exports a dataset; formats/ has one file per format
push.py         uploads a dataset to the Hub; hub.py is the client, card.py makes the dataset card from card_data.py
pull.py         downloads a dataset from the Hub
rehydrate.py    puts images back into a dataset without images; refetch.py restores one image
"""
