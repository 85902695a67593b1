"""Text in, batches out: sources, tokenizers, the token cache, packing, order and loaders."""
