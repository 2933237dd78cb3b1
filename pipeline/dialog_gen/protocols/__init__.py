"""What a generator is asked, and how its answers are read."""
