from dataclasses import dataclass

import torch.nn as nn
from torch.nn import functional as F

@dataclass
class GPTConfig:
    vocab_size: int = 50304
    n_layer: int = 12
    n_embd: int = 768

class GPT(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.h = nn.ModuleList([nn.Linear(config.n_embd, config.n_embd) for _ in range(config.n_layer)])
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size)

    def forward(self, idx, targets):
        x = self.wte(idx)
        for block in self.h:
            x = x + F.gelu(block(x))
        logits = self.lm_head(x)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
