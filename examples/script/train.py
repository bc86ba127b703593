"""Learns to tell an inner ring of points from an outer one.

python train.py --epochs 20
"""

import argparse
import json

import model
import torch
from torch.nn import functional as F


def read_config(path: str) -> dict[str, float]:
    """`key: number` lines."""
    with open(path) as lines:
        pairs = (line.split(":") for line in lines if ":" in line)
        return {key.strip(): float(value) for key, value in pairs}


def main() -> None:
    """Train, and write the weights and the metrics to the working folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="config.yaml")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    config = read_config(args.config)
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = model.build(width=int(config["width"])).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config["learning_rate"])
    points, labels = (t.to(device) for t in model.rings(2000, args.seed))
    val_points, val_labels = (t.to(device) for t in model.rings(500, args.seed + 1))

    accuracy = 0.0
    for epoch in range(1, args.epochs + 1):
        for batch in torch.randperm(len(points)).split(int(config["batch_size"])):
            loss = F.binary_cross_entropy_with_logits(network(points[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = ((network(val_points) > 0) == val_labels.bool()).float().mean().item()
        row = {"epoch": epoch, "epochs": args.epochs, "val_accuracy": round(accuracy, 4)}
        print(json.dumps({"event": "epoch", **row}), flush=True)

    torch.save(network.state_dict(), "model.pt")
    with open("metrics.json", "w") as stream:
        json.dump({"val_accuracy": accuracy}, stream)


if __name__ == "__main__":
    main()
