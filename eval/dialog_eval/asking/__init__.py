"""Ways of asking a model that compares images with texts a question: its candidate answers and their scores."""
