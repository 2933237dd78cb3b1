"""Export formats, one file each: `dialog-gen export --to NAME`. `base` says what a format is, and knows all of them.

llava.py        LLaVA's training file and the folder of images beside it
messages.py     Parquet with chat messages
texts.py        Parquet with question-answer pairs
webdataset.py   tars as img2dataset writes them
parquet.py      what the two Parquet formats share
"""
