"""
Writes train.bin, val.bin and meta.pkl next to this file.
"""
import os
import pickle

import numpy as np

folder = os.path.dirname(__file__)
text = 'the quick brown fox jumps over the lazy dog ' * 60
letters = sorted(set(text))
ids = np.array([letters.index(c) for c in text], dtype=np.uint16)
ids[:2000].tofile(os.path.join(folder, 'train.bin'))
ids[2000:].tofile(os.path.join(folder, 'val.bin'))
with open(os.path.join(folder, 'meta.pkl'), 'wb') as f:
    pickle.dump({'vocab_size': len(letters)}, f)
