"""Image URLs downloaded with img2dataset: its processes are supervised, and fetch by this package's own HTTP."""
