"""What training minimises: `registry.py` finds an objective by its name, `objective.py` says what one is."""
