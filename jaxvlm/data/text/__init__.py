"""Tokenizers and chat templates: they turn conversations into token ids and loss masks."""
