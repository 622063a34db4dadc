"""Reports and pages about data and batches."""
