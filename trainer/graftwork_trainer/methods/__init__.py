"""How each adapter method is configured for training: defaults, what may differ, what cannot train.

`catalogue.find_method` looks one up; `attach.py` puts it on a model and saves what was trained.
"""
