"""Training systems, one file or folder each: what is trained, by which losses, on which data. `base` registers them."""
