"""Export formats of `dialog-gen export --to NAME`, with one file per format.

base.py         the base class of formats and their registry
llava.py        LLaVA's training file and its folder of images
messages.py     Parquet with chat messages
texts.py        Parquet with question-answer pairs
webdataset.py   tars with the layout of img2dataset's
parquet.py      the base class of the two Parquet formats
"""
