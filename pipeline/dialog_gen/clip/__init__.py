"""Models to search with: one loader, one module for each format."""
