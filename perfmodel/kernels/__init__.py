"""Times of kernels, one file a class: few physical parameters, the same equations for one shape and a million.

``model`` holds what all classes share (device constants, fitting), ``library`` finds the parameters of a device;
``gemm``, ``prefill``, ``decode`` and ``moe`` hold the equations.
"""
