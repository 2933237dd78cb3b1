"""Downloading image sets: lists of URLs through img2dataset; archives and webdataset tars directly.

run.py           downloads what a manifest describes
manifests.py     manifests and the base class of download sources
url_lists.py     lists of image URLs; list_formats.py reads them, link_rot.py counts their outcomes
archives.py      files that are fetched as they are; resumable.py fetches one, unpack.py unpacks archives
img2dataset/     img2dataset with safe requests, supervised
http.py          safe HTTP requests; connections.py connects, outcomes.py has their error classes
folder.py        the output folder of a download
provenance.py    the origin of a dataset's images
"""
