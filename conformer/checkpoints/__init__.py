"""Public checkpoints, read without the libraries that wrote them: `convert.py` makes a work directory of one."""
