"""What tests of kernels use, those of this project and those of its users."""
