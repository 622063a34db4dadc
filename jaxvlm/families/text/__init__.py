"""Text alone: a decoder without an encoder; LLaMA, Mistral, Qwen2, Qwen3, SmolLM2."""
