"""EVALUATE: students on held-out images, and the synthetic set next to the real one, as numbers and text tables."""
