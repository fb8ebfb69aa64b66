"""What runs the steps: the device that was asked for, and compiled kernels for the CPU."""
