"""Inference: the step of an engine, the memory it leaves for the cache, and what follows for requests.

engine.py      what an engine adds to its kernels, read from ``perfmodel/engines/*.yaml``
server.py      a model on a machine under an engine: everything but how it is spread and what it is asked
step.py        time of one step: prompts, tokens to follow, or both
capacity.py    memory of weights and workspace, and how many tokens the cache holds
"""
