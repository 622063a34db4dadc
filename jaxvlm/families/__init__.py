"""Model families, one folder each; family-specific code is only there."""
