"""Evaluation: questions with true answers, their score, the sheet of samples, and the test of a run."""
