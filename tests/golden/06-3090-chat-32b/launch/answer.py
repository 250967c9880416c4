"""exllamav3: 4.5 bit by EXL3 with exllamav3 (exl3-4.5)

Loads the checkpoint with the planned cache and answers one prompt: python answer.py "A prompt" [tokens]
"""

import sys
from pathlib import Path

from exllamav3 import Cache, CacheLayer_fp16, Config, Generator, Model, Tokenizer

MODEL = Path("/srv/models/06-3090-chat-32b-tightfit")
CONTEXT = 8192  # the workload's context, in whole pages of the cache
CACHE = 8192  # tokens of all requests at once
REQUESTS = 1  # requests at once
CHUNK = 2048  # tokens of a prompt that are computed at once

prompt, tokens = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 200

config = Config.from_directory(str(MODEL))
model = Model.from_config(config)
cache = Cache(model, max_num_tokens=CACHE, layer_type=CacheLayer_fp16)  # the planned type of the cache
model.load(tensor_p=False, progressbar=True)
generator = Generator(
    model=model, cache=cache, tokenizer=Tokenizer.from_config(config), max_batch_size=REQUESTS, max_chunk_size=CHUNK
)
print(generator.generate(prompt=prompt, max_new_tokens=tokens))
