"""Writes a table, an archive and weights, or fails. The seed decides what they contain."""

import json
import random
import zipfile
from pathlib import Path


def run(output_dir, seed, size, fail):
    """Write `size` bytes of weights; `fail` raises at the end."""
    chance = random.Random(seed)
    output = Path(output_dir)
    for epoch in (1, 2):
        event = {"event": "epoch", "experiment": "cargo", "epoch": epoch, "epochs": 2}
        print(json.dumps({**event, "val_iou": chance.random(), "seconds": 0.1}), flush=True)
    (output / "sub").mkdir(exist_ok=True)
    (output / "sub" / "weights.bin").write_bytes(chance.randbytes(size))
    (output / "table.csv").write_text(f"id,rle_mask\na,{seed}\nb,\n")
    (output / "extra.txt").write_text("not declared\n")
    with zipfile.ZipFile(output / "models.zip", "w") as archive:
        archive.writestr("model.bin", chance.randbytes(size // 2))
    if fail:
        raise RuntimeError("asked to fail")
