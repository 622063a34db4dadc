"""Weights of Hugging Face models into ours and back: tables of reversible rows, and the one engine that reads them."""
