#!/bin/sh
# A comment is no command.
export VLLM_LOGGING_LEVEL=DEBUG
CUDA_VISIBLE_DEVICES=0,1 exec vllm serve ./models/Qwen3-8B \
  --served-model-name "/models/qwen" qwen \
  --host 127.0.0.1 \
  --api-key "$VLLM_API_KEY" sk-spelled-out-0123456789 \
  -tp 2 --seed 0 --dtype half \
  --speculative-config '{
    "method": "ngram",
    "num_speculative_tokens": 3
  }' \
  --swap-space 4 \
  --max-model-len auto --load-format bitsandbytes \
  --ssl-certfile /tls/cert.pem --ssl-keyfile /tls/key.pem \
  --lora-modules sql=someone/sql-lora '{"name": "law", "path": "/loras/law"}' --enable-lora \
  --chat-template 'Hello ${name}' \
  --max-num-seqs many
