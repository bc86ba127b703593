"""Makes up houses and their prices, so that the example needs no account.

python -m prices.data inputs/house-prices-demo
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd


def houses(count: int, seed: int) -> pd.DataFrame:
    """Area in square meters, rooms, age in years, and the price."""
    random = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "id": np.arange(count),
            "area": random.uniform(30, 250, count).round(1),
            "rooms": random.integers(1, 8, count),
            "age": random.integers(0, 90, count),
        }
    )
    noise = random.normal(0, 8, count)
    table["price"] = (3 * table["area"] + 10 * table["rooms"] - table["age"] + noise).round(2)
    return table


def write(folder: Path) -> None:
    """Write train.csv, and test.csv without the prices."""
    folder.mkdir(parents=True, exist_ok=True)
    houses(400, seed=1).to_csv(folder / "train.csv", index=False)
    houses(100, seed=2).drop(columns="price").to_csv(folder / "test.csv", index=False)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
