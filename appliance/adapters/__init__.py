"""OpenAI's requests and answers from and to what other models speak: templates, paths, tensors, chunks."""
