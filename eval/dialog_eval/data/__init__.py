"""Data that evaluations read: published files, images and their ids."""
