import time

out_dir = 'out-finetune'
wandb_run_name = 'ft-' + str(time.time())
max_iters = 20
