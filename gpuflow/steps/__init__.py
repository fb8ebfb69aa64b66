"""What is done to one chunk: one step per file, the expression language, and the table of steps."""
