MODEL=Qwen/Qwen3-8B
SPECULATIVE='{"method": "ngram", "num_speculative_tokens": 3}'
HF_TOKEN=hf_spelled-out
cd /srv && docker run --runtime nvidia --gpus all \
    -v ~/.cache/huggingface:/root/.cache/huggingface \
    --env "HF_TOKEN=$HF_TOKEN" -e VLLM_API_KEY=spelled-out \
    -p 8000:8000 --ipc=host \
    vllm/vllm-openai:latest \
    --model $MODEL --speculative-config "$SPECULATIVE" --hf-overrides.rope_theta 5e5 \
    --max-model-len "${MAX_LEN:-4096}" --port "$PORT" --served-model-name "chat-$STAGE"

nohup python -m vllm.entrypoints.openai.api_server --model=$MODEL-Base --tensor_parallel_size=2 \
    --gpu-memory-utilization 2 --port 8001 >> vllm.log 2>&1 &
