"""The base's weights as a file that the server writes once and every process of the machine maps.

    ROOT/HEX/base.json            what the file holds: `description.BaseFileDescription`
    ROOT/HEX/weights.safetensors  every tensor, in the layout that the kernels read
    ROOT/HEX/config.json, tokenizer.json, ...   the model's small files, as transformers saves them

HEX is the base's digest. `writer.py` makes a folder, `reader.py` maps one, `panels.py` says how the
quantized weights lie and turns them back into floats.
"""
