eval_iters = 500 # for a good estimate
eval_only = True
