"""Native CPU kernels: a C++ extension that runs a whole model step, see ``csrc/``."""
