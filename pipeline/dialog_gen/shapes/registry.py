"""What the embedded world adds to the registries: its generators, its CLIP and its images."""
