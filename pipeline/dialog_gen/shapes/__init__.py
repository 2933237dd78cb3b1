"""The embedded world `shapes`: small drawn scenes whose truth is known.

`scenes` draws scene graphs from a seed, `render` turns one into pixels, `language` writes captions, questions and
answers about it and judges what a model says, `files` writes the file formats of published datasets, `fetch` serves
the images over loopback and downloads them with img2dataset, `architectures` and `generators` build and train the
shipped models, `truth` measures how much of a dataset is true, `registry` adds the world to the registries.

No module outside this package imports the world.
"""
