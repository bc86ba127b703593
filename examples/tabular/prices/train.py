"""Trains a random forest and predicts the test houses."""

import json
from pathlib import Path

import pandas as pd
from sklearn.ensemble import RandomForestRegressor
from sklearn.metrics import root_mean_squared_error
from sklearn.model_selection import train_test_split

from prices.features import features


def run(data_dir: str, output_dir: str, n_estimators: int = 300, seed: int = 0) -> None:
    """Write submission.csv and metrics.json to `output_dir`."""
    data, output = Path(data_dir), Path(output_dir)
    train, test = pd.read_csv(data / "train.csv"), pd.read_csv(data / "test.csv")
    fit, val = train_test_split(train, test_size=0.25, random_state=seed)
    forest = RandomForestRegressor(n_estimators, random_state=seed)
    forest.fit(features(fit), fit["price"])
    rmse = root_mean_squared_error(val["price"], forest.predict(features(val)))
    print(json.dumps({"event": "epoch", "epoch": 1, "epochs": 1, "val_rmse": round(rmse, 3)}))

    predicted = forest.predict(features(test)).round(2)
    submission = pd.DataFrame({"id": test["id"], "price": predicted})
    submission.to_csv(output / "submission.csv", index=False)
    (output / "metrics.json").write_text(json.dumps({"val_rmse": rmse}))
