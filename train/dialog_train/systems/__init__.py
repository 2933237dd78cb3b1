"""What can be trained: one module or folder for each system."""
