"""A chat on its way through a local model: admission, prompt, generation, answer."""
