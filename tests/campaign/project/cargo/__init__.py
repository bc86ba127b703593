"""What the campaign of faults sends to the local Kaggle."""
