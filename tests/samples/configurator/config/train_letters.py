# a small model for letters
out_dir = 'out-letters'
eval_interval = 250
dataset = 'letters'
gradient_accumulation_steps = 1
batch_size = 16
block_size = 16

n_layer = 2
n_embd = 16
max_iters = 5000
