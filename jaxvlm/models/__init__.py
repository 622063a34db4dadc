"""The networks: Flax NNX modules and pure functions on arrays. No files, no ConfigDict, no data.

Other packages see only nested dicts of arrays; they call `families.build.build_model`.
"""
