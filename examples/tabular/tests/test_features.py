import pandas as pd
from prices.features import COLUMNS, features


def test_a_house_without_rooms_counts_as_one_room() -> None:
    house = pd.DataFrame({"area": [50.0], "rooms": [0], "age": [3]})
    assert list(features(house).columns) == COLUMNS
    assert features(house)["area_per_room"].tolist() == [50.0]
