"""Tokenizers and chat templates: from conversations to token ids and loss masks."""
