"""One model on several machines: rank 0 answers, the others compute for it."""
