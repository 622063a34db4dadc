"""Weights from and to Hugging Face models: tables of reversible rules, and the engine that applies them."""
