"""Features of a house."""

import pandas as pd

COLUMNS = ["area", "rooms", "age", "area_per_room"]


def features(houses: pd.DataFrame) -> pd.DataFrame:
    """Columns `COLUMNS`, one row per house; a house without rooms counts as one room."""
    rooms = houses["rooms"].clip(lower=1)
    return houses.assign(area_per_room=houses["area"] / rooms)[COLUMNS]
