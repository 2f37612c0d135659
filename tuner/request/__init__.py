"""What the user asks for: the flags, the YAML file and the Python call, made into one `SearchConfig`.

`config` holds the fields and their defaults, `arguments` FlagEmbedding's and transformers' own, `command_line` the
parser and its help, `asked` writes and reads RUN/config.yaml, `config_file` keeps the settings files that it names,
`storage_url` says how a study's storage is written and hidden.

Uses: run_dir, errors, and the measures' names of trainables.scoring.
"""
