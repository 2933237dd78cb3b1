"""Training systems, one file or folder each. A system defines what is trained, by which losses, on which data."""
