"""The networks: Flax NNX modules and pure functions on arrays. No files, no ConfigDict, no data.

Outside this package there are only nested dicts of arrays; `families.build.build_model` is the way in.
"""
