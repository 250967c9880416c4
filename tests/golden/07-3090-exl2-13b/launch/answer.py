"""exllamav2: 5.23 bit by EXL2 (exl2-5.23)

Loads the checkpoint with the planned cache and answers one prompt: python answer.py "A prompt" [tokens]
"""

import sys
from pathlib import Path

from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Tokenizer
from exllamav2.generator import ExLlamaV2DynamicGenerator

MODEL = Path("/srv/models/07-3090-exl2-13b-tightfit")
CONTEXT = 4096  # the workload's context, in whole pages of the cache
CACHE = 6144  # tokens of all requests at once
REQUESTS = 4  # requests at once
CHUNK = 2048  # tokens of a prompt that are computed at once

prompt, tokens = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 200

config = ExLlamaV2Config(str(MODEL))
config.max_seq_len, config.max_input_len = CONTEXT, CHUNK
model = ExLlamaV2(config)
cache = ExLlamaV2Cache(model, max_seq_len=CACHE, lazy=True)  # the planned type of the cache
model.load_autosplit(cache)  # layer after layer, from the first card to the last
generator = ExLlamaV2DynamicGenerator(
    model=model, cache=cache, tokenizer=ExLlamaV2Tokenizer(config), max_batch_size=REQUESTS, max_chunk_size=CHUNK
)
print(generator.generate(prompt=prompt, max_new_tokens=tokens))
