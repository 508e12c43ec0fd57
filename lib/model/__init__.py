"""A LLaVA: build, load, LoRA, packing, likelihood, generation, pre-training."""
