"""One folder per model family; everything that is particular to a family is in its folder, and nowhere else."""
