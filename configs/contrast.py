"""A function for `apply.yaml`."""


def raised(xp, block, by: float = 1.2):
    """Contrast times `by` around the mean of each picture and channel. block: (sample, y, x, channel), float; the same comes out.

    It sees one stored chunk, whole samples of it, and returns a new array of the same shape: it may not change `block`."""
    mean = block.mean(axis=(1, 2), keepdims=True)
    return (block - mean) * xp.float32(by) + mean
