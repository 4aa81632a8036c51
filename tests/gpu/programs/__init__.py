"""What the checks run on the GPU, each in a process of its own: commands in, answers out.

They need nothing but the Python that `--python` names and the library that they are about, so that
an environment with PyTorch in it can run them as it is.
"""
