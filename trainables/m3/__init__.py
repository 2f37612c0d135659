"""FlagEmbedding's M3 fine-tune, kept exactly and made fast: model, data path, trainer.

`arguments` fills FlagEmbedding's dataclasses and says what they refuse, `runner` builds model and trainer as
FlagEmbedding's runner does, `tokens` holds the rows' texts as token ids, `batching` lays them out, `packing` and
`embedding` are the encoder without padding and without the unused vocabulary, `heads` computes what the losses receive,
`trainer` can be stopped and resumed, `loss_scaling` says which float16 steps are skipped, `lora` puts adapters into the
encoder, `compiling` compiles its layers, `base_models` stays in memory between trials.

Uses: memory, process, config, files, failures, linear, varlen. Only this room and trainables.bundle.libraries import
FlagEmbedding.
"""
