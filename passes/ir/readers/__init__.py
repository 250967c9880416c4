"""What models come as: safetensors headers on disk or on the Hub, GGUF files; held against their description."""
