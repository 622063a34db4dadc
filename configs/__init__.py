"""Recipes: each file has one `get_config()`."""
