"""From records to packed rows: index, packing, pipeline, ledger."""
