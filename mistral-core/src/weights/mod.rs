//! Checkpoints on disk: safetensors and GGUF, memory-mapped, under Mistral's canonical tensor names.
