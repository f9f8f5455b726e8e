"""A user's own time loop, fused where it stands."""
