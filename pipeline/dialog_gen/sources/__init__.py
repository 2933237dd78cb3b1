"""Where images come from: tars, files and Parquet become images with ids, and bytes become pixels."""
