"""Tokenizers and chat templates: conversations become token ids and loss masks."""
