"""What `alpha` stands on."""
