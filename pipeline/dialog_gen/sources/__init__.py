"""Image sources: reads tars, image files and Parquet files as images with ids, and decodes images."""
