"""
Trains a tiny language model on characters.

$ python train.py config/train_letters.py --batch_size=8
"""

import os
import pickle
import time

import numpy as np
import torch

from model import GPT, GPTConfig

# -----------------------------------------------------------------------------
# everything below can be changed on the command line
out_dir = 'out'
eval_interval = 1000
log_interval = 1
eval_iters = 100
eval_only = False # stop after the first evaluation
wandb_log = False
wandb_run_name = 'run'
# data
dataset = 'webtext'
gradient_accumulation_steps = 5 * 8
batch_size = 12
block_size = 256
# model
n_layer = 6
n_embd = 384
# optimizer
learning_rate = 6e-4
max_iters = 500000
weight_decay = 1e-1
# system
device = 'cuda'
dtype = 'bfloat16' if torch.cuda.is_available() else 'float32'
compile = True
# -----------------------------------------------------------------------------
config_keys = [k for k, v in globals().items() if not k.startswith('_') and isinstance(v, (int, float, bool, str))]
exec(open('configurator.py').read()) # overrides from the command line or a config file
config = {k: globals()[k] for k in config_keys}
# -----------------------------------------------------------------------------

os.makedirs(out_dir, exist_ok=True)
torch.manual_seed(1)
data_dir = os.path.join('data', dataset)

def get_batch(split):
    if split == 'train':
        data = np.memmap(os.path.join(data_dir, 'train.bin'), dtype=np.uint16, mode='r')
    else:
        data = np.memmap(os.path.join(data_dir, 'val.bin'), dtype=np.uint16, mode='r')
    starts = torch.randint(len(data) - block_size - 1, (batch_size,))
    x = torch.stack([torch.from_numpy(data[i:i+block_size].astype(np.int64)) for i in starts])
    y = torch.stack([torch.from_numpy(data[i+1:i+1+block_size].astype(np.int64)) for i in starts])
    return x.to(device), y.to(device)

# the size of the vocabulary comes from the data, if it says so
meta_path = os.path.join(data_dir, 'meta.pkl')
vocab_size = 50304
if os.path.exists(meta_path):
    with open(meta_path, 'rb') as f:
        vocab_size = pickle.load(f)['vocab_size']

model = GPT(GPTConfig(vocab_size=vocab_size, n_layer=n_layer, n_embd=n_embd)).to(device)
if compile:
    model = torch.compile(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)

@torch.no_grad()
def estimate_loss():
    return np.mean([model(*get_batch('val')).item() for _ in range(eval_iters)])

if wandb_log:
    import wandb
    wandb.init(name=wandb_run_name, config=config)

t0 = time.time()
for iter_num in range(max_iters + 1):
    if iter_num % eval_interval == 0:
        print(f"step {iter_num}: val loss {estimate_loss():.4f}")
        if iter_num > 0:
            torch.save({'model': model.state_dict(), 'config': config}, os.path.join(out_dir, 'ckpt.pt'))
        if eval_only:
            break
    for micro_step in range(gradient_accumulation_steps):
        loss = model(*get_batch('train')) / gradient_accumulation_steps
        loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if iter_num % log_interval == 0:
        print(f"iter {iter_num}: loss {loss.item() * gradient_accumulation_steps:.4f}")
