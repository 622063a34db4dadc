"""Training: loss, optimizer, state, step, loop, checkpoints and metrics."""
