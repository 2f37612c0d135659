"""What the user asks for: the flags, the YAML file and the Python call, made into one `SearchConfig`.

`config` holds the fields and their defaults, `arguments` FlagEmbedding's and transformers' own arguments, `flags` the
groups of the help and `help_texts` its words, `command_line` the parser. `values` converts what was typed, `checks`
holds the rules for it, `taken_over` the arguments that the search replaces. `asked` writes and reads RUN/config.yaml,
`config_file` copies the settings files that it names, `storage_url` checks how a study's URL is written and hides its
password.

Uses: run_dir, errors, and the measures' names of trainables.scoring.
"""
