"""Step plan to tensors to model to sampled tokens; weights."""
