"""What trainings read: image vectors, token ids and pixels, made once and memory-mapped."""
