"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images at their own size. Source: arXiv:2409.12191, 2502.13923, 2511.21631."""
