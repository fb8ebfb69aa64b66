"""What a pipeline is, and how it is written in YAML and in Python."""
