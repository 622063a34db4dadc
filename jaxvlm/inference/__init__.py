"""Inference: the engine and its compiled programs, answers at once or token by token, conversations."""
