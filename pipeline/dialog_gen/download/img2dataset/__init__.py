"""Downloads image URLs with img2dataset: its processes are supervised and use this package's own HTTP."""
