"""From the chunks on this node to the training loop: which samples, on which rank, read how, and where a run goes on."""
