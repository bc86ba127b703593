"""
Sets the global variables of the script that executes this file.

$ python train.py config/train_letters.py --batch_size=32
"""

import sys
from ast import literal_eval

for arg in sys.argv[1:]:
    if '=' not in arg:
        # the name of a config file
        assert not arg.startswith('--')
        with open(arg) as f:
            print(f"settings of {arg}:\n{f.read()}")
        exec(open(arg).read())
    else:
        # an override
        assert arg.startswith('--')
        key, val = arg[2:].split('=')
        if key not in globals():
            raise ValueError(f"Unknown config key: {key}")
        try:
            val = literal_eval(val)
        except (SyntaxError, ValueError):
            pass # plain text
        assert type(val) == type(globals()[key])
        globals()[key] = val
