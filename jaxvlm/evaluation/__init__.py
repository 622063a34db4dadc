"""Evaluation: questions with reference answers, scores, the sheet of samples, and the test of a run."""
