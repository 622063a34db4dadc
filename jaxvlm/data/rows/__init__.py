"""Turns records into packed rows: index, packing, schedule, pipeline, ledger."""
