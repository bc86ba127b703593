"""Predicts the price of a house."""
