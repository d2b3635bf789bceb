"""SAM-OIL (Wu et al. 2024): a detector's boxes, SAM's mask for each of them, and their fusion to a class map."""
