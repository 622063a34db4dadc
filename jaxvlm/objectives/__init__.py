"""Training objectives: `registry.py` finds an objective by its name, `objective.py` defines the interface."""
