"""The embedded world: small drawn scenes whose truth is known, in two versions, `shapes` and `shapes-2`.

scenes.py          draws scene graphs from a seed
render.py          turns a scene graph into pixels
language.py        captions, questions and answers about a scene; judges what a model says
questions.py       kinds of questions, for either version
second/            scenes, pixels and texts of the second version
worlds.py          the versions by name, for the modules below
files.py           writes the file formats of published datasets
fetch.py           serves the images over loopback and downloads them with img2dataset
architectures.py   the architectures of the shipped models
generators.py      trains the shipped models
truth.py           measures how much of a dataset is true
registry.py        adds the world to the registries

No module outside this package imports it.
"""
