"""LLaVA-1.5: images of one size through CLIP or SigLIP, an MLP, and a decoder. Source: arXiv:2310.03744."""
