"""The embedded world `shapes`: small drawn scenes whose truth is known.

`scenes` draws scene graphs from a seed, `render` turns one into pixels, `language` speaks about it (captions,
questions, answers) and judges what a model says, `files` writes the published file formats, `fetch` serves the
images over loopback and downloads them with img2dataset, `generators` trains the shipped models.
"""
