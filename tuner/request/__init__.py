"""What the user asks for: the flags, the YAML file and the Python call, made into one `SearchConfig`.

`config` holds the fields and their defaults, `arguments` FlagEmbedding's and transformers' own, `command_line` the
parser and its help, `config_file` writes and reads RUN/config.yaml, `storage_url` how a study's storage is
written and hidden.

Uses: run_dir, errors, and the measures' names of trainables.scoring.
"""
