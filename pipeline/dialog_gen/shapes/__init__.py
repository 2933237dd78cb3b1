"""The embedded world `shapes`: small drawn scenes whose truth is known.

scenes.py          draws scene graphs from a seed
render.py          turns a scene graph into pixels
language.py        captions, questions and answers about a scene; judges what a model says
files.py           writes the file formats of published datasets
fetch.py           serves the images over loopback and downloads them with img2dataset
architectures.py   the architectures of the shipped models
generators.py      trains the shipped models
truth.py           measures how much of a dataset is true
registry.py        adds the world to the registries

No module outside this package imports it.
"""
