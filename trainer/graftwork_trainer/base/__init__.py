"""The base as a model to train adapters on: transformers' own modules over the file that the server
maps (`graftwork_adapters.base_file`), with linear modules that multiply by dequantized weights."""
