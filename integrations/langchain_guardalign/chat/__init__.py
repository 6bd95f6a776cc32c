"""Chat models with a guard in front."""
