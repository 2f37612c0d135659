"""FlagEmbedding's M3 fine-tune, kept exactly and made fast: model, data path, trainer.

`runner` builds arguments, model and trainer as FlagEmbedding's runner does, `tokens` holds the rows' texts as token
ids, `batching` lays them out, `packing` and `embedding` are the encoder without padding and without the unused
vocabulary, `heads` the losses' inputs, `trainer` what can be stopped and resumed, `host_copies` its state on the way
to the disk, `lora` adapters in the encoder, `compiling` its layers compiled, `checks` what the libraries refuse
themselves, `base_models` what stays in memory between trials.

Uses: process, config, files, failures, linear, varlen. With trainables.scoring.libraries the only place that imports
FlagEmbedding.
"""
