"""Downloads: URL lists of images through img2dataset, archives and webdataset tars as they are published."""
