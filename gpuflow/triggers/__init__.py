"""What follows from commits: the feed of them, and what is run, called or told when data changes."""
