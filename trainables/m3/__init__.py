"""FlagEmbedding's M3 fine-tune, kept exactly and made fast: model, data path, trainer.

`runner` builds arguments, model and trainer as FlagEmbedding's runner does, `batching`, `collator`, `rows` and
`tokens` bring rows to the device, `packing` and `embedding` are the encoder without padding and without the unused
vocabulary, `heads` and `gradcache` the losses' inputs, `trainer` what can be stopped and resumed, `base_models` what
stays in memory between trials.

Uses: process, config, files, linear. With trainables.scoring.libraries the only place that imports FlagEmbedding.
"""
