"""Images as pixels with their texts, decoded and tokenised once, for trainings of an image tower."""
