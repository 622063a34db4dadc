"""A family of another shape than LLaVA's, to prove the contracts: images of many sizes as patches under a budget of
their own, two patches to a feature, positions of three axes. No file outside this folder knows it.
"""
