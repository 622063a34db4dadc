"""Records become packed rows: index, packing, pipeline, ledger."""
