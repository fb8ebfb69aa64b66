"""Statistics over a whole array from statistics over its chunks."""
