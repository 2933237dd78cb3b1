"""The command line: it parses, calls the Python API and prints."""
