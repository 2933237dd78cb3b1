"""Downloads: URL lists of images with img2dataset, archives and webdataset tars as they are published."""
