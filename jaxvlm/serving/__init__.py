"""Answers over HTTP: requests, the scheduler that batches them, the OpenAI protocol and the server."""
