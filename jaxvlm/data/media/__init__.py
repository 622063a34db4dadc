"""Image files become pixels."""
